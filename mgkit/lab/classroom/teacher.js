// The teacher's page of a class: asks for its state every two seconds.

const part = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function person([name, done], count) {
  const label = `${name}: ${done} of ${count}`;
  return element("li", { title: label }, element("span", { textContent: name }),
    element("progress", { max: count, value: done, ariaLabel: label }), `${done}`);
}

function interval({ question, first, second, interval, text }) {
  const box = element("div", { className: "interval", role: "img", ariaLabel: text });
  if (interval) {
    const [low, share, high] = interval.map((value) => 100 * value);
    const bar = element("i"), dot = element("b");
    Object.assign(bar.style, { left: `${low}%`, width: `${high - low}%` });
    dot.style.left = `${share}%`;
    box.append(bar, dot);
  }
  return element("div", {}, element("h3", { textContent: question }), box,
    element("div", { className: "ends" }, element("span", { textContent: `100 % ${second}` }),
      element("span", { textContent: `100 % ${first}` })),
    element("p", { textContent: text }));
}

async function refresh() {
  try {
    const response = await fetch("state");
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const { address, count, finished, listeners, most, pooled } = await response.json();
    part("problem").hidden = true;
    part("address").textContent = address;
    part("finished").textContent = finished;
    part("joined").textContent = `of ${listeners.length} listeners have finished all ${count} pairs (at most ${most} can join)`;
    part("progress").max = Math.max(1, listeners.length);
    part("progress").value = finished;
    part("people").replaceChildren(...listeners.map((one) => person(one, count)));
    part("intervals").replaceChildren(...pooled.map(interval));
    if (!pooled.length) part("intervals").textContent = "There are no answers yet.";
  } catch (error) {
    part("problem").textContent = `Not up to date: ${error instanceof TypeError ? "no connection" : error.message}.`;
    part("problem").hidden = false;
  }
  setTimeout(refresh, 2000);
}

refresh();

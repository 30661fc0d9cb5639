// The listeners' page of a class; it follows player.js in one script. All it shows comes from `state`.

const part = (id) => document.getElementById(id);
const sections = ["join", "pair", "done", "result"];
let state = null, plays = [0, 0], busy = false;

// A request, and the new state, which is shown in any case. A refused answer comes with its reason.
async function ask(action, fields) {
  if (busy) return;
  busy = true;
  enable();
  try {
    const request = fields && {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
    };
    const response = await fetch(action, request);
    if (!response.headers.get("Content-Type")?.includes("json")) throw new Error(await response.text());
    const before = state?.pair;
    state = await response.json();
    busy = false;
    // A pair whose answer arrived, though the confirmation did not, is no problem.
    show(state.pair == before || !response.ok && response.status != 409 ? state.error : "");
  } catch (error) {
    complain(error instanceof TypeError ? "No connection, so this is not saved yet: try again." : error.message);
  }
  busy = false;
  enable();
}

function complain(text) {
  part("problem").textContent = text;
  part("problem").hidden = !text;
}

// --- the views ---------------------------------------------------------------------------------------------------

function show(error) {
  complain(error);
  const view = !state.name ? "join" : state.pair ? "pair" : state.result ? "result" : "done";
  for (const id of sections) part(id).hidden = id != view;
  part("who").textContent = state.name || "";
  part("progress").hidden = !state.name;
  part("progress").max = state.count;
  part("progress").value = state.done || 0;
  part("undo").hidden = !state.undo;
  if (view == "join" && state.full) complain("This test is full.");
  if (view == "pair" && part("pair").dataset.pair != state.pair) showPair();
  if (view != "pair") part("pair").dataset.pair = "";
  if (view == "result") showResult();
  if (view != "pair") part("players").replaceChildren();
}

function showPair() {
  part("pair").dataset.pair = state.pair;
  part("who").textContent = `${state.name} · ${state.done + 1} of ${state.count}`;
  part("question").textContent = state.question;
  part("item").textContent = state.item;
  part("comment").value = "";
  plays = [0, 0];
  part("players").replaceChildren(...state.clips.map(showClip));
  window.scrollTo(0, 0);
}

function showClip(name, which) {
  const letter = "AB"[which];
  const sound = element("audio", { src: `clips/${name}` });
  // A line instead of a waveform, which would show what a listener should hear.
  const paintWave = (paint, width, height) => {
    paint.fillStyle = GIVEN;
    paint.fillRect(0, height / 2 - 2, width, 4);
  };
  const player = makePlayer({ sound, label: letter, width: 400, height: 44, paintWave });
  const count = element("small");
  const card = element("div", { className: "clip" }, element("h3", {}, letter, count), sound, player.canvas, player.row);
  countPlays(card, () => {
    plays[which] = Math.min(plays[which] + 1, 99);
    card.classList.add("heard");
    count.textContent = plays[which] == 1 ? "played once" : `played ${plays[which]} times`;
    enable();
  });
  sound.addEventListener("error", () => complain(`${letter} could not be loaded: reload the page.`));
  return card;
}

function enable() {
  const missing = ["A", "B"].filter((_, which) => !plays[which]);
  for (const button of part("choices").children) button.disabled = busy || missing.length > 0;
  part("hint").textContent = missing.length ? `Listen to ${missing.join(" and ")} first.` : "Listen again as often as you like.";
  for (const id of ["undo", "reveal", "leave"]) part(id).disabled = busy;
}

function showResult() {
  part("counts").replaceChildren(...state.result.map(({ question, counts, p }) => {
    const [first, second, ties] = counts;
    const share = ([, number]) => {
      const span = element("span");
      span.style.flexGrow = number;
      return span;
    };
    const key = ([name, number], style) => element("span", { className: "key" },
      element("span", { className: `swatch ${style}` }), `${name}: ${number}`);
    const coin = `A coin would come out at least this uneven in ${Math.round(100 * p)} % of all tests.`;
    return element("div", {}, element("h3", { textContent: question }),
      element("div", { className: "bar" }, share(first), share(ties), share(second)),
      element("p", {}, key(first, "first"), " ", key(ties, ""), " ", key(second, "second")),
      element("p", { className: "quiet", textContent: first[1] + second[1] ? coin : "" }));
  }));
  const row = (kind, cells) => element("tr", {}, ...cells.map((text) => element(kind, { textContent: text })));
  part("rows").replaceChildren(row("th", ["", "A was", "B was", "you preferred"]), ...state.rows.map((one) =>
    row("td", [one.item, one.a, one.b, one.preferred ? `${one.answer}: ${one.preferred}` : "no difference"])));
}

// --- clicks ------------------------------------------------------------------------------------------------------

part("join").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  ask("join", { name: part("name").value });
};
for (const button of part("choices").children) {
  button.onclick = () => {
    const fields = { pair: state.pair, choice: button.dataset.choice, comment: part("comment").value, plays };
    ask("answer", fields);
  };
}
part("undo").onclick = () => ask("undo", {});
part("reveal").onclick = () => ask("result", {});
part("leave").onclick = () => {
  part("name").value = "";
  ask("leave", {});
};
ask("state");

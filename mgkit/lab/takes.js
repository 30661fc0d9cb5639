// The browser side of cards.py: the list of takes. It follows player.js in one script.

const CARDS = `
.mgkit .tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 4px }
.mgkit .tools h3 { margin: 0 auto 0 0; font-size: 15px; font-weight: 600 }
.mgkit .undo { display: flex; gap: 12px; align-items: center; padding: 6px 10px; margin: 6px 0; border-radius: 4px;
  background: rgba(138, 143, 152, 0.2) }
.mgkit .empty { opacity: 0.75; padding: 12px 0 }
.mgkit article { padding: 10px 0 8px; border-top: 1px solid rgba(138, 143, 152, 0.4) }
.mgkit article header { display: flex; gap: 6px; align-items: center; margin-bottom: 4px }
.mgkit article .number { opacity: 0.7; min-width: 1.2em; text-align: right }
.mgkit article input { font: inherit; font-weight: 600; color: inherit; background: transparent; flex: 1; min-width: 0;
  border: 1px solid transparent; border-radius: 4px; padding: 1px 4px; text-overflow: ellipsis }
.mgkit article input:hover, .mgkit article input:focus { border-color: ${GIVEN} }
.mgkit article input::placeholder { color: inherit; opacity: 1 }
.mgkit .star { border-color: transparent; padding: 0 4px; font-size: 16px; line-height: 1.3 }
.mgkit button.star[aria-pressed=true] { background: transparent; border-color: transparent; color: #d97706 }
.mgkit details { margin-top: 2px; font-size: 12px }
.mgkit details summary { cursor: pointer; opacity: 0.8 }
.mgkit details div { overflow-wrap: anywhere; opacity: 0.85 }`;

function unpack(text) {
  return new Int8Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

// Draws the envelope of a take: minimum and maximum of each column, grey before the seam.
function painter(item) {
  const pairs = unpack(item.wave), count = pairs.length / 2;
  const cut = item.seam ? (count * item.seam) / item.seconds : 0;
  return (paint, width, height) => {
    for (let i = 0; i < count; i++) {
      paint.fillStyle = i < cut ? GIVEN : NEW;
      const top = (height / 2) * (1 - pairs[2 * i + 1] / 127), bottom = (height / 2) * (1 - pairs[2 * i] / 127);
      paint.fillRect((i * width) / count, top, width / count + 0.3, Math.max(1, bottom - top));
    }
  };
}

function showTakes({ model, el }) {
  oneSound();
  const cards = new Map(), send = (kind, number = 0, value = "") => model.send({ kind, number, value });
  const format = element("select", { title: "format of downloads" });
  format.setAttribute("aria-label", "format");
  for (const name of ["WAV", "FLAC", "MP3"]) format.append(element("option", { textContent: name }));
  const extension = () => `.${format.value.toLowerCase()}`;
  const stars = element("button", { textContent: "★ only", title: "show starred takes only" });
  const everything = element("button", { textContent: "Download all", title: "one zip file of all takes" });
  everything.onclick = () => send("download_all", 0, extension());
  const over = element("button", { textContent: "Start over", title: "for the next person: set the takes aside" });
  over.onclick = () => { ask.hidden = false; };
  const tools = element("div", { className: "tools" }, element("h3", { textContent: "Takes" }), stars, everything, format, over);
  const close = (start) => { ask.hidden = true; if (start) send("start_over"); };
  const ask = element("div", { className: "undo", hidden: true },
    element("span", { textContent: "Set all takes aside and every input to its start, for the next person?" }),
    element("button", { className: "main", textContent: "Yes", onclick: () => close(true) }),
    element("button", { textContent: "No", onclick: () => close(false) }));
  ask.setAttribute("role", "group");
  const undo = element("div", { className: "undo", hidden: true });
  undo.setAttribute("role", "status");
  const empty = element("div", { className: "empty", textContent: "What you generate appears here, and is kept." });
  const list = element("div");
  const root = element("div", { className: "mgkit" }, element("style", { textContent: STYLE + CARDS }), tools, ask, undo, empty, list);
  el.append(root);
  // The notebook must not handle keys typed here too.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  let starred = false, first = true;
  stars.setAttribute("aria-pressed", false);
  stars.onclick = () => { starred = !starred; stars.setAttribute("aria-pressed", starred); draw(); };

  const makeCard = (item) => {
    const { number } = item, sound = element("audio");
    const card = { item, sound, waiting: null };
    // One request for the sound, however often it is asked for.
    const load = () => (card.loaded ||= new Promise((done) => { card.deliver = done; send("sound", number); }));
    const player = makePlayer({
      sound, label: `take ${number}`, width: 560, height: 48, seconds: item.seconds, paintWave: painter(item), load,
    });
    const star = element("button", { className: "star", title: "star" });
    star.setAttribute("aria-label", "star");
    star.onclick = () => send("star", number);
    const name = element("input", { placeholder: item.prompt, title: "name of the take" });
    name.setAttribute("aria-label", `name of take ${number}`);
    name.onchange = () => send("rename", number, name.value);
    name.onkeydown = (event) => { if (event.key == "Enter") name.blur(); };
    const button = (text, title, onclick) => element("button", { textContent: text, title, onclick });
    const code = button("Copy as code", "Python that generates this take", async () => {
      await copy(card.item.code);
      code.textContent = "Copied";
      setTimeout(() => (code.textContent = "Copy as code"), 2000);
    });
    const melody = button("Use as melody", "let the next take follow it", () => send("melody", number));
    const runs = [
      button("Continue", "generate on from its end", () => send("continue", number)),
      button("More like this", "three takes with the next seeds", () => send("more", number)),
    ];
    // What they start plays as it is made, like Generate's.
    for (const run of runs) run.className = model.get("starter");
    player.row.append(button("Download", "download this take", () => send("download", number, extension())));
    const facts = element("details", {}, element("summary"), element("div"));
    const actions = element("div", { className: "row" }, runs[0], melody, runs[1], code,
      button("Delete", "delete this take; it can be undone", () => send("delete", number)));
    const root = element("article", { className: "mgkit-take" },
      element("header", {}, star, element("span", { className: "number", textContent: number }), name),
      player.canvas, sound, player.row, actions, facts);
    Object.assign(card, { root, load, update: (item) => {
      card.item = item;
      star.textContent = item.starred ? "★" : "☆";
      star.setAttribute("aria-pressed", item.starred);
      if (document.activeElement !== name) name.value = item.name;
      facts.firstChild.textContent = `${item.seconds.toFixed(1)} s · ${item.facts[0]}`;
      facts.lastChild.replaceChildren(...item.facts.slice(1).map((fact) => element("div", { textContent: fact })));
      for (const run of runs) run.disabled = model.get("busy");
      melody.hidden = !model.get("has_melody");
    } });
    // The waveform is drawn in the page's colours, which it has once it is in the page.
    requestAnimationFrame(player.draw);
    return card;
  };

  const draw = () => {
    const items = [...model.get("items")].reverse();
    for (const [number, card] of cards) {
      if (items.some((item) => item.number == number)) continue;
      card.sound.pause();
      card.root.remove();
      cards.delete(number);
    }
    let before = null;
    for (const item of items) {
      let card = cards.get(item.number);
      if (!card) {
        cards.set(item.number, (card = makeCard(item)));
        // A card that is in place stays there: moving it would stop its sound.
        if (before) before.after(card.root);
        else list.prepend(card.root);
        // A new take is likely to be played, one of an earlier session not.
        if (!first) card.load();
      }
      card.update(item);
      card.root.hidden = starred && !item.starred;
      before = card.root;
    }
    first = false;
    empty.hidden = items.length > 0;
    empty.textContent = "What you generate appears here, and is kept.";
    everything.disabled = !items.length;
    stars.disabled = !items.length;
    over.disabled = model.get("busy");
    const text = model.get("undo");
    undo.hidden = !text;
    undo.replaceChildren(element("span", { textContent: text }),
      element("button", { textContent: "Undo", onclick: () => send("undo") }));
  };
  const receive = (message, buffers) => {
    if (message.kind == "file") {
      const types = { wav: "audio/wav", flac: "audio/flac", mp3: "audio/mpeg", zip: "application/zip" };
      save(buffers[0], message.name, types[message.name.split(".").pop()]);
    }
    const card = message.kind == "sound" && cards.get(message.number);
    if (card?.deliver) {
      card.sound.src = URL.createObjectURL(new Blob([buffers[0]], { type: "audio/flac" }));
      card.deliver();
      card.deliver = null;
    }
  };
  model.on("change:items change:undo change:busy change:has_melody", draw);
  model.on("msg:custom", receive);
  draw();
  return () => {
    model.off("change:items change:undo change:busy change:has_melody", draw);
    model.off("msg:custom", receive);
    for (const card of cards.values()) {
      card.sound.pause();
      if (card.sound.src) URL.revokeObjectURL(card.sound.src);
    }
  };
}

// Pages without https have no clipboard; the selection does.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

export default { render: showTakes };

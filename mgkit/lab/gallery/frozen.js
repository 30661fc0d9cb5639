// Views of anywidgets on a page without a kernel: each runs on the state that the notebook saved.

const { scripts, models } = JSON.parse(document.getElementById("mgkit-frozen").textContent);
const views = {};

// What a view uses of a model. Nothing answers its messages but one: a live player learns that no music came before it.
function makeModel(state) {
  const listeners = {};
  return {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; },
    save_changes: () => {},
    on: (events, call) => { for (const name of events.split(" ")) (listeners[name] ||= []).push(call); },
    off: () => {},
    send: (message) => {
      if (message.kind != "ready") return;
      for (const call of listeners["msg:custom"] || []) call({ kind: "from", piece: 0, start: 0 }, []);
    },
  };
}

async function show(place) {
  const { script, state } = models[place.dataset.frozen];
  views[script] ||= import(URL.createObjectURL(new Blob([scripts[script]], { type: "text/javascript" })));
  const module = await views[script], model = makeModel(state);
  // A widget may be described by a function, which makes it.
  const widget = typeof module.default == "function" ? await module.default() : module.default || module;
  await widget.initialize?.({ model });
  // Static players need no kernel; the rest is a picture.
  place.inert = state.html === undefined;
  await widget.render({ model, el: place });
}

for (const place of document.querySelectorAll("[data-frozen]")) {
  show(place).catch((error) => { place.textContent = `This part needs the running notebook (${error.message}).`; });
}

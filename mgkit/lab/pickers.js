// The browser side of pickers.py; it follows player.js in one script.

const PICKERS = `
.mgkit .drop { display: inline-flex; gap: 8px; align-items: center; flex-wrap: wrap }
.mgkit .drop.over button { border-color: ${NEW}; border-style: dashed }
.mgkit .hint { font-size: 12px; opacity: 0.75 }
.mgkit .track { position: relative; width: fit-content; max-width: 100% }
.mgkit .handle { position: absolute; top: -3px; bottom: -3px; width: 20px; margin-left: -10px; cursor: ew-resize;
  touch-action: none }
.mgkit .handle::before { content: ""; position: absolute; left: 8px; width: 4px; top: 0; bottom: 0; background: #c2410c;
  border-radius: 2px }
.mgkit .handle.start::before { background: ${GIVEN} }
.mgkit .handle:focus-visible { outline: 2px solid ${NEW} }`;

const style = () => element("style", { textContent: STYLE + PICKERS });
// Bytes of a part: below the largest message of any server.
const PART = 512 * 1024;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;

function showUploader({ model, el }) {
  const limit = model.get("limit");
  const input = element("input", { type: "file", accept: "audio/*,.wav,.mp3,.ogg,.flac,.m4a,.aac,.webm", hidden: true });
  const words = `WAV, MP3, FLAC, OGG or m4a, up to ${megabytes(limit)}`;
  const button = element("button", { textContent: "Upload", title: words, onclick: () => input.click() });
  const hint = element("span", { className: "hint", textContent: words });
  hint.setAttribute("role", "status");
  const drop = element("div", { className: "drop" }, button, input, hint);
  el.append(element("div", { className: "mgkit" }, style(), drop));
  // The answer to the part just sent.
  let answered = null, sending = false;
  const receive = (message) => answered?.(message.kind);
  model.on("msg:custom", receive);

  const send = async (name, bytes) => {
    for (let at = 0, index = 0; ; at += PART, index++) {
      const last = at + PART >= bytes.byteLength;
      hint.textContent = `sending ${name}: ${Math.round((100 * at) / Math.max(1, bytes.byteLength))} %`;
      const answer = new Promise((done) => { answered = done; });
      model.send({ kind: "part", name, index, last }, undefined, [bytes.slice(at, at + PART)]);
      const kind = await answer;
      if (last) return kind == "done";
    }
  };
  const upload = async (file) => {
    if (!file || sending) return;
    if (file.size > limit) {
      const message = `${file.name} has ${megabytes(file.size)}; an upload may have up to ${megabytes(limit)}. ` +
        "Cut it, or save it as MP3 or FLAC.";
      return model.send({ kind: "problem", message });
    }
    sending = button.disabled = true;
    try {
      const bytes = await file.arrayBuffer();
      if (await send(file.name, bytes)) return;
      hint.textContent = "decoding in the browser …";
      const wav = await decode(bytes);
      if (!wav) {
        const message = `'${file.name}' is not audio that this page or the kernel can read: save it as WAV, MP3, FLAC or OGG.`;
        model.send({ kind: "problem", message });
      } else await send(file.name, wav);
    } finally {
      sending = button.disabled = false;
      hint.textContent = words;
      input.value = "";
    }
  };
  input.onchange = () => upload(input.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); upload(event.dataTransfer.files[0]); };
  return () => model.off("msg:custom", receive);
}

// A 16-bit WAV file of what the browser decodes, at most two channels at 44.1 kHz; null if it cannot.
async function decode(bytes) {
  const rate = 44100;
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.slice(0));
  } catch {
    return null;
  }
  const channels = Math.min(2, sound.numberOfChannels), size = sound.length * channels * 2;
  const view = new DataView(new ArrayBuffer(44 + size));
  const letters = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  letters(0, "RIFF"); view.setUint32(4, 36 + size, true); letters(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, channels, true);
  view.setUint32(24, rate, true); view.setUint32(28, rate * channels * 2, true);
  view.setUint16(32, channels * 2, true); view.setUint16(34, 16, true); letters(36, "data"); view.setUint32(40, size, true);
  for (let c = 0; c < channels; c++) {
    const samples = sound.getChannelData(c);
    for (let i = 0; i < samples.length; i++) {
      view.setInt16(44 + 2 * (i * channels + c), Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768))), true);
    }
  }
  return view.buffer;
}

function showTrimmer({ model, el }) {
  const root = element("div", { className: "mgkit" });
  el.append(root);
  let end = 0, given = 0, seconds = 1, place = () => {}, sound = null, deliver = null;

  const draw = () => {
    sound?.pause();
    root.replaceChildren(style());
    if (!model.get("wave")) return;
    seconds = model.get("seconds");
    sound = element("audio");
    const pairs = Int8Array.from(atob(model.get("wave")), (letter) => letter.charCodeAt(0)), count = pairs.length / 2;
    const paintWave = (paint, width, height) => {
      for (let i = 0; i < count; i++) {
        const at = (i * seconds) / count;
        paint.fillStyle = at >= end - given && at < end ? NEW : GIVEN;
        const top = (height / 2) * (1 - pairs[2 * i + 1] / 127), bottom = (height / 2) * (1 - pairs[2 * i] / 127);
        paint.fillRect((i * width) / count, top, width / count + 0.3, Math.max(1, bottom - top));
      }
    };
    let loaded;
    const load = () => (loaded ||= new Promise((done) => { deliver = done; model.send({ kind: "sound" }); }));
    const player = makePlayer({ sound, label: model.get("name"), width: 560, height: 56, seconds, paintWave, load });
    const track = element("div", { className: "track" }, player.canvas);
    const handles = ["start", "end"].map((side) => handle(side, track));
    track.append(...handles.map((one) => one.root));
    place = () => {
      handles.forEach((one) => one.place());
      player.draw();
    };
    root.append(element("div", { textContent: model.get("name") }), track, sound, player.row);
    follow();
  };
  const keep = () => {
    model.set("end", end);
    model.set("given", given);
    model.save_changes();
  };
  const move = (side, to) => {
    const at = Math.min(seconds, Math.max(0, to));
    if (side == "end") {
      // The given part keeps its length where it can.
      end = Math.max(0.1, at);
      given = Math.min(given, end);
    } else given = Math.min(end, Math.max(0.1, end - at));
    place();
  };
  const handle = (side, track) => {
    const root = element("div", { className: `handle ${side}`, tabIndex: 0 });
    root.setAttribute("role", "slider");
    root.setAttribute("aria-label", side == "end" ? "continue from" : "start of the given part");
    root.title = side == "end" ? "the music continues from here" : "start of the part that the model receives";
    const value = () => (side == "end" ? end : end - given);
    let dragged = false;
    root.onpointerdown = (event) => { root.setPointerCapture(event.pointerId); dragged = true; };
    root.onpointermove = (event) => {
      if (!dragged) return;
      const box = track.getBoundingClientRect();
      move(side, (seconds * (event.clientX - box.left)) / box.width);
    };
    root.onpointerup = root.onpointercancel = () => { if (dragged) keep(); dragged = false; };
    root.onkeydown = (event) => {
      const by = { ArrowLeft: -0.1, ArrowRight: 0.1, PageDown: -1, PageUp: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      move(side, value() + by);
      keep();
    };
    return { root, place: () => {
      root.style.left = `${(100 * value()) / seconds}%`;
      root.setAttribute("aria-valuemax", seconds.toFixed(1));
      root.setAttribute("aria-valuenow", value().toFixed(1));
      root.setAttribute("aria-valuetext", `${value().toFixed(1)} s`);
    } };
  };
  const follow = () => {
    [end, given] = [model.get("end"), model.get("given")];
    place();
  };
  const receive = (message, buffers) => {
    if (message.kind != "sound" || !deliver) return;
    sound.src = URL.createObjectURL(new Blob([buffers[0]], { type: "audio/flac" }));
    deliver();
    deliver = null;
  };
  model.on("change:wave", draw);
  model.on("change:end change:given", follow);
  model.on("msg:custom", receive);
  draw();
  return () => {
    sound?.pause();
    model.off("change:wave", draw);
    model.off("change:end change:given", follow);
    model.off("msg:custom", receive);
  };
}

export default {
  render: (view) => ({ uploader: showUploader, trimmer: showTrimmer })[view.model.get("view")](view),
};

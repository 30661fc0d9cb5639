// The browser's half of player.py. It travels inside the widget or the page, and fetches nothing.
//
//   enhance         a plain player (picture and <audio>) gets a cursor, seeking, a loop button, a download
//   Stream          chunks in, sound out: one AudioContext at the rate of the music, joins exact to the sample
//   showStream      what is seen of it
//   showRecorder    the microphone

const NEW = "#2a7fbf", GIVEN = "#8a8f98"; // as in show.py; both readable on white and on black

const STYLE = `
.mgkit { font: 13px/1.6 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, inherit) }
.mgkit canvas { display: block; cursor: pointer; max-width: 100% }
.mgkit audio { max-width: 100% }
.mgkit .row { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; margin: 4px 0 }
.mgkit button { font: inherit; color: inherit; background: transparent; border: 1px solid ${GIVEN};
  border-radius: 4px; padding: 1px 12px; cursor: pointer }
.mgkit button:hover:enabled { border-color: ${NEW} }
.mgkit button:disabled { opacity: 0.45; cursor: default }
.mgkit button.main, .mgkit button[aria-pressed=true] { background: ${NEW}; border-color: ${NEW}; color: #fff }
.mgkit .said { min-height: 1.6em }`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A canvas of width x height CSS pixels, sharp on every screen; its context counts in those pixels.
function surface(width, height) {
  const sharp = window.devicePixelRatio || 1;
  const canvas = element("canvas", { width: width * sharp, height: height * sharp });
  canvas.style.width = `${width}px`;
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  return [canvas, context];
}

// --- a finished wave -------------------------------------------------------------------------------------------

function enhance(root) {
  if (!root || root.dataset.alive) return;
  root.dataset.alive = "yes";
  const image = root.querySelector("img"), sound = root.querySelector("audio");
  const [width, height] = [400, 48];
  const [canvas, paint] = surface(width, height);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-label", `position in the ${image.alt}`);

  const draw = () => {
    const length = sound.duration || 0, now = sound.currentTime;
    const x = length ? (width * now) / length : 0;
    paint.clearRect(0, 0, width, height);
    paint.fillStyle = "rgba(138, 143, 152, 0.25)";
    paint.fillRect(0, 0, x, height);
    paint.drawImage(image, 0, 0, width, height);
    paint.fillStyle = getComputedStyle(canvas).color;
    paint.fillRect(Math.min(x, width - 1.5), 0, 1.5, height);
    canvas.setAttribute("aria-valuemax", length.toFixed(2));
    canvas.setAttribute("aria-valuenow", now.toFixed(2));
    if (!sound.paused && canvas.isConnected) requestAnimationFrame(draw);
  };
  const seek = (seconds) => {
    if (sound.duration) sound.currentTime = Math.min(Math.max(seconds, 0), sound.duration);
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    seek((sound.duration * (event.clientX - box.left)) / box.width);
  };
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); point(event); };
  canvas.onpointermove = (event) => { if (event.buttons & 1) point(event); };
  canvas.onkeydown = (event) => {
    const keys = {
      ArrowLeft: () => seek(sound.currentTime - 1),
      ArrowRight: () => seek(sound.currentTime + 1),
      " ": () => (sound.paused ? sound.play() : sound.pause()),
    };
    if (!keys[event.key]) return;
    event.preventDefault(); // or the notebook takes it
    event.stopPropagation();
    keys[event.key]();
  };
  for (const name of ["play", "pause", "seeked", "timeupdate", "loadedmetadata"]) sound.addEventListener(name, draw);

  const loop = element("button", { textContent: "Loop", title: "play it again and again" });
  const pressed = () => loop.setAttribute("aria-pressed", sound.loop);
  loop.onclick = () => { sound.loop = !sound.loop; pressed(); };
  pressed();
  const download = element("button", { textContent: "Download", title: root.dataset.file });
  download.onclick = () => {
    const bytes = Uint8Array.from(atob(sound.src.split(",")[1]), (letter) => letter.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "audio/flac" }));
    element("a", { href: url, download: root.dataset.file }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  };
  root.prepend(element("style", { textContent: STYLE }));
  image.replaceWith(canvas);
  sound.after(element("div", { className: "row" }, loop, download));
  image.decode().then(draw, draw);
}

// For a page: the script may run before what it belongs to is in the document.
function enhanceWhenShown(id, tries = 100) {
  const found = document.querySelectorAll(`#${id}:not([data-alive])`);
  found.forEach(enhance);
  if (!found.length && tries) setTimeout(enhanceWhenShown, 50, id, tries - 1);
}

function showPlayer(model, root) {
  const draw = () => {
    root.innerHTML = model.get("html");
    enhance(root.firstElementChild);
  };
  model.on("change:html", draw);
  draw();
  return () => model.off("change:html", draw);
}

// --- a wave that grows -----------------------------------------------------------------------------------------

const SPARE = 1.1; // times real time: a machine slower than this must collect before it plays; as in player.py
const COLUMN = 1 / 25; // seconds of one bar of the picture
const FADE = 0.01; // seconds, where music runs out or is stopped
const CLOSE = 0.03; // seconds: less than this ahead of the sound card is too late to go on without a gap

class Stream {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.rate = model.get("rate");
    this.channels = model.get("channels");
    this.context = null;
    this.sure = false; // until the kernel says where to go on: the page may be younger than the piece
    this.clear(0);
    this.hear = (message, buffers) => this.take(message, buffers);
    model.on("msg:custom", this.hear);
    model.send({ kind: "ready" });
    this.born = performance.now();
    this.timer = setInterval(() => this.tick(), 50);
  }

  close() {
    clearInterval(this.timer);
    this.model.off("msg:custom", this.hear);
    this.silence();
    this.context?.close();
  }

  // A new piece, of which nothing is known yet.
  clear(piece) {
    this.silence();
    this.piece = piece;
    this.state = "idle"; // collecting, playing, ended, stopped
    this.next = 0; // the sample that must come next
    this.early = new Map(); // chunks by the sample they begin with, until their turn
    this.queue = []; // chunks in order, not yet given to the context
    this.given = 0; // samples given to the context
    this.speed = 0; // seconds of music that the kernel makes in a second
    this.chunk = 0; // seconds of the last chunk
    this.finished = false;
    this.underruns = this.discontinuities = 0;
    this.bars = []; // [lowest, highest] of each COLUMN
    this.changed = performance.now();
  }

  // --- what the kernel sends

  take(message, buffers) {
    if (message.piece < this.piece) return;
    if (message.kind == "reset" || message.piece > this.piece) {
      this.clear(message.piece);
      if (this.context) this.state = "collecting"; // Play was pressed before: somebody wants to hear this one too
    }
    if (message.kind == "from" && !this.sure) {
      this.sure = true;
      if (message.start > this.next) this.goOnAt(message.start);
    }
    if (message.kind == "finish") {
      this.finished = true;
      if (this.state == "playing") this.hold();
    }
    if (message.kind == "chunk") {
      const view = buffers[0];
      const samples = new Int16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
      this.speed = message.speed;
      this.early.set(message.start, samples);
      this.inOrder();
    }
    this.tick();
  }

  // Leaves out what lies before the sample `start`.
  goOnAt(start) {
    this.given += start - this.next;
    this.next = start;
    this.inOrder();
  }

  inOrder() {
    for (const start of this.early.keys()) if (start < this.next) this.early.delete(start); // sent twice
    for (let samples; (samples = this.early.get(this.next)); ) {
      this.early.delete(this.next);
      const frames = samples.length / this.channels;
      this.drawInto(this.next, samples, frames);
      this.next += frames;
      this.chunk = frames / this.rate;
      this.changed = performance.now();
      this.queue.push({ samples, frames });
      if (this.state == "playing") this.schedule();
    }
  }

  drawInto(start, samples, frames) {
    for (let i = 0; i < frames; i++) {
      const column = Math.floor((start + i) / this.rate / COLUMN);
      const bar = (this.bars[column] ||= [0, 0]), sample = samples[i] / 32768; // the first channel
      if (sample < bar[0]) bar[0] = sample;
      if (sample > bar[1]) bar[1] = sample;
    }
  }

  // --- sound

  get waiting() { return this.queue.reduce((sum, chunk) => sum + chunk.frames, 0) / this.rate; }
  get left() { return this.frame / this.rate - this.context.currentTime; } // seconds given and not yet heard
  get played() {
    const ahead = this.state == "playing" ? Math.max(0, this.left) : 0;
    return Math.max(0, this.given / this.rate - ahead);
  }
  get paused() { return this.context?.state == "suspended"; }

  // Nothing has come for so long that nothing may come before what is there is heard.
  get late() { return performance.now() - this.changed > 1000 * (1 + (2 * this.chunk) / this.speed); }

  // Seconds that must be there before it starts, so that it need not pause again.
  get needed() {
    if (this.finished) return 0;
    if (!this.speed) return 4;
    const margin = this.speed / SPARE;
    const lead = Math.max(0.3, (1.2 * this.chunk) / this.speed + 0.2);
    if (margin >= 1) return this.late ? 0 : lead;
    const total = this.model.get("seconds");
    return total ? Math.max(lead, (total - this.given / this.rate) * (1 - margin)) : Math.max(lead, 10);
  }

  // Must run inside a click: browsers keep a page silent until then.
  async press() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: this.rate, latencyHint: "playback" });
      await this.context.resume();
      this.model.set("context_rate", this.context.sampleRate);
    } else if (this.state == "playing") {
      await (this.paused ? this.context.resume() : this.context.suspend());
      return this.tick();
    }
    await this.context.resume();
    const over = this.state == "ended" || this.state == "stopped";
    if (this.model.get("sourced") && (over || !this.next)) {
      this.clear(this.piece);
      this.model.send({ kind: "play" });
    }
    this.state = "collecting";
    this.tick();
  }

  stop() {
    this.silence();
    this.queue = [];
    this.state = "stopped";
    this.model.send({ kind: "stop", piece: this.piece });
    this.tick();
  }

  // Fades what sounds, and lets go of it.
  silence() {
    if (!this.gain) return;
    const now = this.context.currentTime;
    this.given -= Math.max(0, Math.round(this.left * this.rate));
    this.gain.gain.cancelScheduledValues(now);
    this.gain.gain.setTargetAtTime(0, now, FADE / 3);
    for (const node of this.nodes) node.stop(now + 3 * FADE);
    this.gain = null;
  }

  begin(again) {
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.nodes = new Set();
    this.frame = Math.ceil((this.context.currentTime + 2 * CLOSE) * this.rate);
    if (again) {
      this.gain.gain.setValueAtTime(0, this.frame / this.rate);
      this.gain.gain.linearRampToValueAtTime(1, this.frame / this.rate + FADE);
    }
    this.began = this.frame / this.rate + FADE;
    this.state = "playing";
    this.schedule();
  }

  // Gives all that is in the queue to the context, each chunk to begin on the sample after the one before.
  schedule() {
    if (this.left < CLOSE) return this.ranOut();
    for (const { samples, frames } of this.queue) {
      const buffer = this.context.createBuffer(this.channels, frames, this.rate);
      for (let c = 0; c < this.channels; c++) {
        const channel = buffer.getChannelData(c), offset = c * frames;
        for (let i = 0; i < frames; i++) channel[i] = samples[offset + i] / 32768;
      }
      const node = this.context.createBufferSource();
      node.buffer = buffer;
      node.connect(this.gain);
      node.start(this.frame / this.rate);
      node.onended = () => this.nodes.delete(node);
      this.nodes.add(node);
      if (this.context.sampleRate != this.rate) this.discontinuities++; // resampled chunk by chunk
      this.frame += frames;
      this.given += frames;
    }
    this.queue = [];
    this.hold();
  }

  // Full level to the end of what is there; were nothing to follow, it fades rather than clicks.
  hold() {
    const gain = this.gain.gain, end = this.frame / this.rate;
    gain.cancelScheduledValues(Math.max(this.began, this.context.currentTime) + 1e-4);
    if (this.finished) return;
    gain.setValueAtTime(1, Math.max(this.began, end - FADE));
    gain.linearRampToValueAtTime(0, end);
  }

  ranOut() {
    this.gain = null;
    this.underruns++;
    this.state = "collecting";
  }

  // --- what happens by itself

  tick() {
    if (this.early.size && performance.now() - this.changed > 2000) {
      if (this.sure) this.discontinuities++; // a chunk was lost on the way; else the kernel is too busy to answer
      this.goOnAt(Math.min(...this.early.keys()));
    }
    if (this.state == "playing" && !this.paused) {
      if (this.finished && this.left <= 0) this.state = "ended";
      else if (!this.finished && this.left < CLOSE) this.ranOut();
    }
    if (this.state == "collecting" && this.context && !this.paused) {
      if (this.queue.length && this.waiting >= this.needed) this.begin(this.given > 0);
      else if (this.finished && !this.queue.length) this.state = "ended";
    }
    if (this.state == "ended") this.gain = null;
    this.tell();
    for (const view of this.views) view();
  }

  tell() {
    const now = performance.now();
    if (now - (this.told || 0) < 250) return;
    const facts = {
      started: this.state == "playing" || (this.state == "collecting" && !!this.context),
      played: Math.round(this.played * 1000) / 1000,
      underruns: this.underruns,
      discontinuities: this.discontinuities,
    };
    const changed = Object.keys(facts).filter((name) => this.model.get(name) !== facts[name]);
    if (!changed.length) return;
    this.told = now;
    for (const name of changed) this.model.set(name, facts[name]);
    this.model.save_changes();
  }

  // In words, what is going on.
  get said() {
    const seconds = (number) => `${number.toFixed(1)} s`;
    const speed = this.speed ? `${this.speed.toFixed(1)} × real time` : "";
    const error = this.model.get("message");
    const fine = this.speed >= SPARE || !this.speed;
    let text = "";
    if (!this.sure && performance.now() - this.born > 5000) {
      text = "The kernel has not answered: it is busy, or this cell has to be run again.";
    } else if (this.state == "idle" && !this.next) text = "Press Play to hear the music while it is made.";
    else if (this.state == "idle") text = `${seconds(this.waiting)} are ready. Press Play.`;
    else if (this.state == "collecting" && fine) text = "One moment: the first sound is being made.";
    else if (this.state == "collecting") {
      const endless = this.model.get("seconds") ? "" : " (and again when that is used up)";
      text = `This machine makes ${speed}: collecting ${seconds(this.waiting)} of ${seconds(this.needed)} before it plays${endless}.`;
    } else if (this.paused && this.state == "playing") text = `Paused at ${seconds(this.played)}.`;
    else if (this.state == "playing") {
      text = [`${seconds(this.played)} heard`, `${seconds(Math.max(0, this.left))} ahead`, speed].filter(Boolean).join(" · ");
    } else text = `${this.state == "ended" ? "The end" : "Stopped"}, after ${seconds(this.played)}.`;
    if (this.underruns) text += ` It ran out of music ${this.underruns == 1 ? "once" : `${this.underruns} times`}.`;
    return error ? `${text} ${error}` : text;
  }
}

function showStream(model, root, stream) {
  const [width, height, past, future] = [600, 64, 8, 4]; // pixels, and seconds left and right of what sounds
  const [canvas, paint] = surface(width, height);
  canvas.style.cursor = "default";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "waveform of what was just heard and of what comes next");
  const play = element("button", { className: "main", onclick: () => stream.press() });
  const stop = element("button", { textContent: "Stop", onclick: () => stream.stop() });
  const said = element("span", { className: "said", role: "status" });
  root.append(element("div", { className: "mgkit" }, element("style", { textContent: STYLE }), canvas,
    element("div", { className: "row" }, play, stop, said)));

  const draw = () => {
    const now = stream.played, pixels = width / (past + future);
    paint.clearRect(0, 0, width, height);
    paint.fillStyle = GIVEN;
    paint.fillRect(0, height / 2, width, 0.5);
    const first = Math.max(0, Math.floor((now - past) / COLUMN)), last = Math.ceil((now + future) / COLUMN);
    for (let column = first; column < last; column++) {
      const bar = stream.bars[column];
      if (!bar) continue;
      paint.fillStyle = column * COLUMN < now ? NEW : GIVEN;
      const top = height / 2 - (bar[1] * height) / 2, tall = Math.max(1, ((bar[1] - bar[0]) * height) / 2);
      paint.fillRect((column * COLUMN - now + past) * pixels, top, COLUMN * pixels - 0.5, tall);
    }
    paint.fillStyle = getComputedStyle(canvas).color;
    paint.fillRect(past * pixels, 0, 1.5, height);
  };
  const view = () => {
    const sounding = stream.state == "playing" && !stream.paused;
    const over = stream.state == "ended" || stream.state == "stopped";
    play.textContent = sounding ? "Pause" : "Play";
    play.disabled = stream.state == "collecting" && !!stream.context && !stream.paused || (over && !model.get("sourced"));
    stop.disabled = over || (stream.state == "idle");
    if (sounding || said.textContent != stream.said) draw();
    said.textContent = stream.said;
  };
  stream.views.add(view);
  view();
  return () => stream.views.delete(view);
}

// --- the microphone --------------------------------------------------------------------------------------------

const REFUSED = {
  NotAllowedError: "The microphone was refused. Allow it for this page (beside its address) and press Record again, or upload a file.",
  NotFoundError: "There is no microphone here. Connect one and press Record again, or upload a file.",
  NotReadableError: "The microphone is in use by another program. Close that and press Record again, or upload a file.",
};
const NOWHERE = "This page may not use a microphone: browsers allow it on https and on localhost only. Upload a file instead.";
const RAW = { echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // music, not a call

function showRecorder(model, root) {
  const record = element("button", { className: "main", textContent: "Record" });
  const level = element("meter", { min: 0, max: 1, value: 0, title: "level" });
  const said = element("span", { className: "said", role: "status" });
  const sound = element("audio", { controls: true, hidden: true });
  root.append(element("div", { className: "mgkit" }, element("style", { textContent: STYLE }),
    element("div", { className: "row" }, record, level, said), sound));
  const say = (text) => {
    said.textContent = text;
    model.set("message", text);
    model.save_changes();
  };
  let finish = null; // while it records: ends the recording

  const start = async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: RAW });
    } catch (error) {
      return say(REFUSED[error.name] || `The microphone does not work: ${error.message}. Upload a file instead.`);
    }
    const context = new AudioContext(), meter = context.createAnalyser(), parts = [];
    context.createMediaStreamSource(stream).connect(meter);
    const recorder = new MediaRecorder(stream, { audioBitsPerSecond: 192000 });
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      clearInterval(timer);
      stream.getTracks().forEach((track) => track.stop());
      await context.close();
      level.value = 0;
      finish = null;
      record.textContent = "Record";
      await keep(new Blob(parts, { type: recorder.mimeType }));
    };
    const began = performance.now(), samples = new Float32Array(meter.fftSize);
    const timer = setInterval(() => {
      const seconds = (performance.now() - began) / 1000;
      meter.getFloatTimeDomainData(samples);
      level.value = samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
      said.textContent = `Recording: ${seconds.toFixed(1)} of at most ${model.get("seconds")} s`;
      if (seconds >= model.get("seconds")) finish?.();
    }, 100);
    finish = () => recorder.stop();
    recorder.start();
    record.textContent = "Stop";
  };

  // Decodes and resamples to the rate that the kernel asked for, mixes to mono, sends.
  const keep = async (file) => {
    const rate = model.get("rate");
    let heard;
    try {
      heard = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
    } catch {
      return say("Nothing was recorded. Press Record again.");
    }
    const count = Math.min(heard.length, Math.round(model.get("seconds") * rate));
    const samples = new Int16Array(count);
    let peak = 0;
    for (let i = 0; i < count; i++) {
      let sum = 0;
      for (let c = 0; c < heard.numberOfChannels; c++) sum += heard.getChannelData(c)[i];
      const mean = sum / heard.numberOfChannels;
      peak = Math.max(peak, Math.abs(mean));
      samples[i] = Math.max(-32768, Math.min(32767, Math.round(mean * 32768)));
    }
    model.send({ kind: "recorded" }, undefined, [samples.buffer]);
    if (sound.src) URL.revokeObjectURL(sound.src);
    sound.src = URL.createObjectURL(file);
    sound.hidden = false;
    const quiet = peak < 0.001 ? " It is silent: is the microphone muted?" : "";
    say(`${(count / rate).toFixed(1)} s recorded.${quiet}`);
  };

  record.onclick = () => (finish ? finish() : start());
  const able = !!navigator.mediaDevices?.getUserMedia && typeof MediaRecorder != "undefined";
  record.disabled = !able;
  if (able) said.textContent = `Press Record, then Stop; at most ${model.get("seconds")} s.`;
  else say(NOWHERE);
  return () => finish?.();
}

export default () => {
  let stream; // one for all views of a widget: it sounds once, however often it is shown
  return {
    initialize({ model }) {
      if (model.get("view") != "live") return;
      stream = new Stream(model);
      return () => stream.close();
    },
    render({ model, el }) {
      return { player: showPlayer, live: showStream, recorder: showRecorder }[model.get("view")](model, el, stream);
    },
  };
};

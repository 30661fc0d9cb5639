// The browser side of LivePlayer and Recorder; it follows player.js in one script.
//
//   showPlayers     HTML with static players, enhanced; plays of the named ones are reported
//   Stream          queues chunks and plays them in one AudioContext at the music's rate, joined sample by sample
//   showStream      its view: waveform, Play, Stop, status
//   showRecorder    the microphone

function showPlayers(model, root) {
  const draw = () => {
    // A removed <audio> would play on.
    root.querySelectorAll("audio").forEach((sound) => sound.pause());
    root.innerHTML = model.get("html");
    root.querySelectorAll(".mgkit-player").forEach(enhance);
    for (const one of root.querySelectorAll("[data-plays]")) {
      countPlays(one, () => model.send({ kind: "played", name: one.dataset.plays }));
    }
  };
  const receive = (message) => { if (message.kind == "play") root.querySelector("audio")?.play(); };
  model.on("change:html", draw);
  model.on("msg:custom", receive);
  draw();
  return () => {
    model.off("msg:custom", receive);
    root.querySelectorAll("audio").forEach((sound) => sound.pause());
    model.off("change:html", draw);
  };
}

// --- live playback -----------------------------------------------------------------------------------------

// Times real time: slower generation must be buffered before playback; as in player.py.
const MARGIN = 1.1;
// Seconds per bar of the waveform.
const COLUMN = 1 / 25;
// Seconds of fade where the buffer ends or playback stops.
const FADE = 0.01;
// Seconds ahead of the sound card below which the next chunk would come too late to join without a gap.
const CLOSE = 0.03;

class Stream {
  constructor(model) {
    this.model = model;
    this.views = new Set();
    this.rate = model.get("rate");
    this.channels = model.get("channels");
    this.context = null;
    // Whether the page's own button was pressed, so that the next piece plays at once.
    this.wanted = false;
    this.starter = model.get("starter");
    this.onClick = (event) => { if (this.starter && event.target.closest?.(`.${this.starter}`)) this.wake(); };
    document.addEventListener("click", this.onClick, true);
    this.onSound = ({ detail }) => {
      if (detail.owner !== this && !detail.together && this.state == "playing") this.context.suspend().then(() => this.tick());
    };
    window.addEventListener("mgkit-sound", this.onSound);
    oneSound();
    // False until the kernel reports where to continue: the page may be newer than the piece.
    this.synced = false;
    this.clear(0);
    this.onMessage = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.onMessage);
    model.send({ kind: "ready" });
    this.born = performance.now();
    this.timer = setInterval(() => this.tick(), 50);
  }

  close() {
    clearInterval(this.timer);
    document.removeEventListener("click", this.onClick, true);
    window.removeEventListener("mgkit-sound", this.onSound);
    this.model.off("msg:custom", this.onMessage);
    this.silence();
    this.context?.close();
  }

  // Start a new, empty piece.
  clear(piece) {
    this.silence();
    this.piece = piece;
    // One of idle, buffering, playing, ended, stopped.
    this.state = "idle";
    // Index of the next sample to enqueue, and chunks received too early by their first sample.
    this.next = 0;
    this.early = new Map();
    // Chunks in order, not yet scheduled, and the number of samples scheduled so far.
    this.queue = [];
    this.scheduled = 0;
    // Seconds of music generated per second, and seconds in the last chunk.
    this.speed = 0;
    this.chunk = 0;
    this.finished = false;
    this.underruns = this.discontinuities = 0;
    // [minimum, maximum] of each COLUMN.
    this.bars = [];
    this.changed = performance.now();
  }

  // --- messages from the kernel

  receive(message, buffers) {
    if (message.piece < this.piece) return;
    if (message.kind == "reset" || message.piece > this.piece) {
      this.clear(message.piece);
      if (message.rate) this.setFormat(message.rate, message.channels);
      // Play was pressed for the previous piece, or the page's button for this one.
      if (this.starter ? this.wanted : this.context) this.state = "buffering";
      this.wanted = false;
    }
    if (message.kind == "halt") this.halt();
    if (message.kind == "from" && !this.synced) {
      this.synced = true;
      if (message.start > this.next) this.skipTo(message.start);
    }
    if (message.kind == "finish") {
      this.finished = true;
      if (this.state == "playing") this.fadeAtEnd();
    }
    if (message.kind == "chunk") {
      const view = buffers[0];
      const samples = new Int16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
      this.speed = message.speed;
      this.early.set(message.start, samples);
      this.enqueue();
    }
    this.tick();
  }

  // Another model may have another rate, and a context has one only.
  setFormat(rate, channels) {
    this.channels = channels;
    if (rate == this.rate) return;
    this.rate = rate;
    this.context?.close();
    this.context = null;
    if (this.wanted) this.open();
  }

  // Skip the samples before `start`.
  skipTo(start) {
    this.scheduled += start - this.next;
    this.next = start;
    this.enqueue();
  }

  enqueue() {
    // Chunks sent twice.
    for (const start of this.early.keys()) if (start < this.next) this.early.delete(start);
    for (let samples; (samples = this.early.get(this.next)); ) {
      this.early.delete(this.next);
      const frames = samples.length / this.channels;
      this.updateBars(this.next, samples, frames);
      this.next += frames;
      this.chunk = frames / this.rate;
      this.changed = performance.now();
      this.queue.push({ samples, frames });
      if (this.state == "playing") this.schedule();
    }
  }

  updateBars(start, samples, frames) {
    for (let i = 0; i < frames; i++) {
      const column = Math.floor((start + i) / this.rate / COLUMN);
      // The first channel only.
      const bar = (this.bars[column] ||= [0, 0]), sample = samples[i] / 32768;
      if (sample < bar[0]) bar[0] = sample;
      if (sample > bar[1]) bar[1] = sample;
    }
  }

  // --- playback

  get queued() { return this.queue.reduce((sum, chunk) => sum + chunk.frames, 0) / this.rate; }
  // Seconds scheduled and not yet played.
  get remaining() { return this.frame / this.rate - this.context.currentTime; }
  get played() {
    const ahead = this.state == "playing" ? Math.max(0, this.remaining) : 0;
    return Math.max(0, this.scheduled / this.rate - ahead);
  }
  get paused() { return this.context?.state == "suspended"; }

  // Whether the next chunk is overdue, so that playback should start without it.
  get overdue() { return performance.now() - this.changed > 1000 * (1 + (2 * this.chunk) / this.speed); }

  // Seconds to buffer before playback starts, enough to play to the end without a stall.
  get required() {
    if (this.finished) return 0;
    if (!this.speed) return 4;
    const margin = this.speed / MARGIN;
    const lead = Math.max(0.3, (1.2 * this.chunk) / this.speed + 0.2);
    if (margin >= 1) return this.overdue ? 0 : lead;
    const total = this.model.get("seconds");
    return total ? Math.max(lead, (total - this.scheduled / this.rate) * (1 - margin)) : Math.max(lead, 10);
  }

  // Must be called from a click: browsers mute a page until then.
  async open() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: this.rate, latencyHint: "playback" });
      this.model.set("context_rate", this.context.sampleRate);
    }
    await this.context.resume();
  }

  // The page's button was pressed: a piece is to come.
  wake() {
    this.wanted = true;
    if (this.state == "playing") this.halt();
    return this.open();
  }

  async press() {
    if (this.state == "playing" && !this.paused) {
      await this.context.suspend();
      return this.tick();
    }
    announce(this);
    const paused = this.state == "playing";
    await this.open();
    if (paused) return this.tick();
    const over = this.state == "ended" || this.state == "stopped";
    if (this.model.get("has_source") && (over || !this.next)) {
      this.clear(this.piece);
      this.model.send({ kind: "play" });
    }
    this.state = "buffering";
    this.tick();
  }

  stop() {
    this.model.send({ kind: "stop", piece: this.piece });
    this.halt();
  }

  halt() {
    this.silence();
    this.queue = [];
    this.state = this.next ? "stopped" : "idle";
    this.tick();
  }

  // Fade out and discard the scheduled audio.
  silence() {
    if (!this.gain) return;
    const now = this.context.currentTime;
    this.scheduled -= Math.max(0, Math.round(this.remaining * this.rate));
    this.gain.gain.cancelScheduledValues(now);
    this.gain.gain.setTargetAtTime(0, now, FADE / 3);
    for (const node of this.nodes) node.stop(now + 3 * FADE);
    this.gain = null;
  }

  begin(resumed) {
    announce(this);
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.nodes = new Set();
    this.frame = Math.ceil((this.context.currentTime + 2 * CLOSE) * this.rate);
    if (resumed) {
      this.gain.gain.setValueAtTime(0, this.frame / this.rate);
      this.gain.gain.linearRampToValueAtTime(1, this.frame / this.rate + FADE);
    }
    this.fadedIn = this.frame / this.rate + FADE;
    this.state = "playing";
    this.schedule();
  }

  // Schedule all queued chunks, each to start on the sample after the previous one.
  schedule() {
    if (this.remaining < CLOSE) return this.stall();
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
      // The browser then resamples each chunk on its own.
      if (this.context.sampleRate != this.rate) this.discontinuities++;
      this.frame += frames;
      this.scheduled += frames;
    }
    this.queue = [];
    this.fadeAtEnd();
  }

  // Full level up to a short fade at the end of the buffer, which avoids a click if nothing follows.
  fadeAtEnd() {
    const gain = this.gain.gain, end = this.frame / this.rate;
    gain.cancelScheduledValues(Math.max(this.fadedIn, this.context.currentTime) + 1e-4);
    if (this.finished) return;
    gain.setValueAtTime(1, Math.max(this.fadedIn, end - FADE));
    gain.linearRampToValueAtTime(0, end);
  }

  stall() {
    this.gain = null;
    this.underruns++;
    this.state = "buffering";
  }

  // --- periodic work

  tick() {
    if (this.early.size && performance.now() - this.changed > 2000) {
      // After synchronisation a chunk was lost in transit; before it, the kernel is too busy to respond.
      if (this.synced) this.discontinuities++;
      this.skipTo(Math.min(...this.early.keys()));
    }
    if (this.state == "playing" && !this.paused) {
      if (this.finished && this.remaining <= 0) this.state = "ended";
      else if (!this.finished && this.remaining < CLOSE) this.stall();
    }
    if (this.state == "buffering" && this.context && !this.paused) {
      if (this.queue.length && this.queued >= this.required) this.begin(this.scheduled > 0);
      else if (this.finished && !this.queue.length) this.state = "ended";
    }
    if (this.state == "ended") this.gain = null;
    this.report();
    for (const view of this.views) view();
  }

  report() {
    const now = performance.now();
    if (now - (this.reportedAt || 0) < 250) return;
    const facts = {
      started: this.state == "playing" || (this.state == "buffering" && !!this.context),
      played: Math.round(this.played * 1000) / 1000,
      underruns: this.underruns,
      discontinuities: this.discontinuities,
    };
    const changed = Object.keys(facts).filter((name) => this.model.get(name) !== facts[name]);
    if (!changed.length) return;
    this.reportedAt = now;
    for (const name of changed) this.model.set(name, facts[name]);
    this.model.save_changes();
  }

  // The state in words.
  get statusText() {
    const seconds = (number) => `${number.toFixed(1)} s`;
    const speed = this.speed ? `${this.speed.toFixed(1)} × real time` : "";
    const error = this.model.get("message");
    const fine = this.speed >= MARGIN || !this.speed;
    let text = "";
    if (!this.synced && performance.now() - this.born > 5000) {
      text = "The kernel does not respond: it is busy, or this cell must be run again.";
    } else if (this.state == "idle" && !this.next) text = "Press Play to listen while the music is generated.";
    else if (this.state == "idle") text = `${seconds(this.queued)} ready. Press Play.`;
    else if (this.state == "buffering" && fine) text = this.next ? "Buffering …" : "Generating the first chunk …";
    else if (this.state == "buffering") {
      const endless = this.model.get("seconds") ? "" : " (and again when the buffer is empty)";
      const amount = `${this.queued.toFixed(1)} of ${seconds(this.required)}`;
      text = `Generating at ${speed}: buffering ${amount} before playback${endless}.`;
    } else if (this.paused && this.state == "playing") text = `Paused at ${seconds(this.played)}.`;
    else if (this.state == "playing") {
      text = [`${seconds(this.played)} played`, `${seconds(Math.max(0, this.remaining))} buffered`, speed].filter(Boolean).join(" · ");
    } else text = `${this.state == "ended" ? "Finished" : "Stopped"} after ${seconds(this.played)}.`;
    if (this.underruns) text += ` Playback stalled ${this.underruns == 1 ? "once" : `${this.underruns} times`}.`;
    return error ? `${text} ${error}` : text;
  }
}

function showStream(model, root, stream) {
  // Pixels, and seconds before and after the playback position.
  const [width, height, past, future] = [600, 64, 8, 4];
  const [canvas, paint] = surface(width, height);
  canvas.style.cursor = "default";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "waveform around the playback position");
  const play = element("button", { className: "main", onclick: () => stream.press() });
  const stop = element("button", { textContent: "Stop", onclick: () => stream.stop() });
  const status = element("span", { className: "status", role: "status" });
  // A page with a starter has a Stop of its own.
  const buttons = stream.starter ? [play] : [play, stop];
  root.append(element("div", { className: "mgkit" }, element("style", { textContent: STYLE }), canvas,
    element("div", { className: "row" }, ...buttons, status)));

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
    play.disabled = stream.state == "buffering" && !!stream.context && !stream.paused || (over && !model.get("has_source"));
    stop.disabled = over || (stream.state == "idle");
    if (sounding || status.textContent != stream.statusText) draw();
    status.textContent = stream.statusText;
  };
  stream.views.add(view);
  view();
  return () => stream.views.delete(view);
}

// --- the microphone --------------------------------------------------------------------------------------------

const REFUSED = {
  NotAllowedError: "Microphone access was denied. Allow it next to the page's address and press Record again, or upload a file.",
  NotFoundError: "No microphone was found. Connect one and press Record again, or upload a file.",
  NotReadableError: "Another program is using the microphone. Close it and press Record again, or upload a file.",
};
const NOWHERE = "This page cannot use a microphone: browsers allow it on https and localhost only. Upload a file instead.";
// Music, not a call: no processing.
const RAW = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

function showRecorder(model, root) {
  const record = element("button", { className: "main", textContent: "Record" });
  const level = element("meter", { min: 0, max: 1, value: 0, title: "level" });
  const status = element("span", { className: "status", role: "status" });
  const sound = element("audio", { controls: true, hidden: true });
  root.append(element("div", { className: "mgkit" }, element("style", { textContent: STYLE }),
    element("div", { className: "row" }, record, level, status), sound));
  const setStatus = (text) => {
    status.textContent = text;
    model.set("message", text);
    model.save_changes();
  };
  // Ends the recording in progress, if there is one.
  let finish = null;

  const start = async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: RAW });
    } catch (error) {
      return setStatus(REFUSED[error.name] || `The microphone failed: ${error.message}. Upload a file instead.`);
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
      status.textContent = `Recording: ${seconds.toFixed(1)} of at most ${model.get("seconds")} s`;
      if (seconds >= model.get("seconds")) finish?.();
    }, 100);
    finish = () => recorder.stop();
    recorder.start();
    record.textContent = "Stop";
  };

  // Decode, resample to the kernel's rate, mix to mono and send.
  const keep = async (file) => {
    const rate = model.get("rate");
    let decoded;
    try {
      decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
    } catch {
      return setStatus("Nothing was recorded. Press Record again.");
    }
    const count = Math.min(decoded.length, Math.round(model.get("seconds") * rate));
    const samples = new Int16Array(count);
    let peak = 0;
    for (let i = 0; i < count; i++) {
      let sum = 0;
      for (let c = 0; c < decoded.numberOfChannels; c++) sum += decoded.getChannelData(c)[i];
      const mean = sum / decoded.numberOfChannels;
      peak = Math.max(peak, Math.abs(mean));
      samples[i] = Math.max(-32768, Math.min(32767, Math.round(mean * 32768)));
    }
    model.send({ kind: "recorded" }, undefined, [samples.buffer]);
    if (sound.src) URL.revokeObjectURL(sound.src);
    sound.src = URL.createObjectURL(file);
    sound.hidden = false;
    const quiet = peak < 0.001 ? " The recording is silent: is the microphone muted?" : "";
    setStatus(`${(count / rate).toFixed(1)} s recorded.${quiet}`);
  };

  record.onclick = () => (finish ? finish() : start());
  const supported = !!navigator.mediaDevices?.getUserMedia && typeof MediaRecorder != "undefined";
  record.disabled = !supported;
  if (supported) status.textContent = `Press Record, then Stop; at most ${model.get("seconds")} s.`;
  else setStatus(NOWHERE);
  return () => finish?.();
}

export default () => {
  // Shared by all views of a widget, so that it plays once however often it is shown.
  let stream;
  return {
    initialize({ model }) {
      if (model.get("view") != "live") return;
      stream = new Stream(model);
      return () => stream.close();
    },
    render({ model, el }) {
      return { players: showPlayers, live: showStream, recorder: showRecorder }[model.get("view")](model, el, stream);
    },
  };
};

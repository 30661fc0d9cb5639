// The browser side of a finished wave, embedded in widgets and pages; it fetches nothing.
//
//   enhance        gives a static player (image and <audio>) a cursor, seeking, Play, Loop and Download
//   makePlayer     the same for any picture and sound; `takes.js` uses it with sounds fetched on demand
//   countPlays     reports each play of a static player that was listened to
//   oneSound       starting a sound stops the others, unless Shift is held

// As in drawing.py; both have enough contrast on white and on black.
const NEW = "#2a7fbf", GIVEN = "#8a8f98";

const STYLE = `
.mgkit { font: 13px/1.6 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, inherit) }
.mgkit canvas { display: block; cursor: pointer; max-width: 100% }
.mgkit canvas:focus-visible, .mgkit button:focus-visible { outline: 2px solid ${NEW}; outline-offset: 2px }
.mgkit audio { max-width: 100% }
.mgkit [hidden] { display: none !important }
.mgkit .row { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; margin: 4px 0 }
.mgkit button, .mgkit select { font: inherit; color: inherit; background: transparent; border: 1px solid ${GIVEN};
  border-radius: 4px; padding: 1px 10px; cursor: pointer }
.mgkit select option { color: #000; background: #fff }
.mgkit button:hover:enabled, .mgkit select:hover { border-color: ${NEW} }
.mgkit button:disabled { opacity: 0.45; cursor: default }
.mgkit button.main, .mgkit button[aria-pressed=true] { background: ${NEW}; border-color: ${NEW}; color: #fff }
.mgkit .time { font-variant-numeric: tabular-nums; opacity: 0.8 }
.mgkit .status { min-height: 1.6em }`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Canvas of width x height CSS pixels at the screen's resolution, and its context, which uses CSS pixels.
function surface(width, height) {
  const sharp = window.devicePixelRatio || 1;
  const canvas = element("canvas", { width: width * sharp, height: height * sharp });
  canvas.style.cssText = `width: ${width}px; max-width: 100%; height: ${height}px`;
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  return [canvas, context];
}

// --- one sound at a time ---------------------------------------------------------------------------------------

// Announces a sound that starts; `together` leaves the others on. An owner is an <audio> or a Stream.
function announce(owner, together = false) {
  window.dispatchEvent(new CustomEvent("mgkit-sound", { detail: { owner, together } }));
}

// Once per page, for all <audio> elements in it, whoever made them.
function oneSound() {
  if (window.mgkitOneSound) return;
  window.mgkitOneSound = true;
  document.addEventListener("play", (event) => {
    const sound = event.target;
    announce(sound, sound.dataset.together == "yes");
    delete sound.dataset.together;
  }, true);
  window.addEventListener("mgkit-sound", ({ detail }) => {
    if (detail.together) return;
    for (const sound of document.querySelectorAll("audio")) if (sound !== detail.owner) sound.pause();
  });
}

// --- a finished wave -------------------------------------------------------------------------------------------

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function save(bytes, name, type = "audio/flac") {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// Player of `sound` (<audio>): canvas and row of buttons. `paintWave(paint, width, height)` draws the picture,
// `load()` gives the sound its source, at once or later, and `seconds` is its length until then.
function makePlayer({ sound, label, width, height, seconds = 0, paintWave, load = async () => {} }) {
  oneSound();
  const [canvas, paint] = surface(width, height);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-label", `position in ${label}`);
  canvas.setAttribute("aria-valuemin", 0);
  sound.controls = false;
  sound.hidden = true;
  sound.preload = "auto";
  const length = () => (isFinite(sound.duration) && sound.duration) || seconds;
  const time = element("span", { className: "time" });
  const play = element("button", { className: "main play", title: "Shift-click: along with what is playing" });
  // A narrow player, as in a table, has signs instead of words.
  const name = (button, word, sign) => {
    button.textContent = width < 300 ? sign : word;
    button.setAttribute("aria-label", word);
  };

  const draw = () => {
    const now = sound.currentTime, x = length() ? (width * now) / length() : 0;
    paint.clearRect(0, 0, width, height);
    paint.fillStyle = "rgba(138, 143, 152, 0.25)";
    paint.fillRect(0, 0, x, height);
    paintWave(paint, width, height);
    paint.fillStyle = getComputedStyle(canvas).color;
    paint.fillRect(Math.min(x, width - 1.5), 0, 1.5, height);
    canvas.setAttribute("aria-valuemax", length().toFixed(2));
    canvas.setAttribute("aria-valuenow", now.toFixed(2));
    canvas.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${length().toFixed(1)} s`);
    time.textContent = `${clock(now)} / ${clock(length())}`;
    name(play, ...(sound.paused ? ["Play", "▶"] : ["Pause", "❚❚"]));
    if (!sound.paused && canvas.isConnected) requestAnimationFrame(draw);
  };
  const toggle = async (together) => {
    await load();
    if (!sound.paused) return sound.pause();
    if (together) sound.dataset.together = "yes";
    await sound.play();
  };
  const seek = async (to) => {
    await load();
    if (!sound.readyState) await new Promise((done) => sound.addEventListener("loadedmetadata", done, { once: true }));
    sound.currentTime = Math.min(Math.max(to, 0), length());
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return seek((length() * (event.clientX - box.left)) / box.width);
  };
  play.onclick = (event) => toggle(event.shiftKey);
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); point(event); };
  canvas.onpointermove = (event) => { if (event.buttons & 1) point(event); };
  canvas.onkeydown = (event) => {
    const keys = {
      ArrowLeft: () => seek(sound.currentTime - 1),
      ArrowRight: () => seek(sound.currentTime + 1),
      Home: () => seek(0),
      " ": () => toggle(false),
    };
    if (!keys[event.key]) return;
    // The notebook must not handle these keys too.
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  };
  for (const name of ["play", "pause", "seeked", "timeupdate", "loadedmetadata"]) sound.addEventListener(name, draw);

  const loop = element("button", { title: "repeat" });
  name(loop, "Loop", "↻");
  const pressed = () => loop.setAttribute("aria-pressed", sound.loop);
  loop.onclick = () => { sound.loop = !sound.loop; pressed(); };
  pressed();
  draw();
  return { canvas, draw, name, row: element("div", { className: "row" }, play, time, loop) };
}

// A static player: its first image becomes the canvas, its <audio> the sound.
function enhance(root) {
  if (!root || root.dataset.alive) return;
  root.dataset.alive = "yes";
  const image = root.querySelector("img"), sound = root.querySelector("audio");
  // As written: the notebook's style sheet has other ideas of an image's height.
  const [width, height] = ["width", "height"].map((name) => Number(image.getAttribute(name)));
  const paintWave = (paint) => { if (image.complete) paint.drawImage(image, 0, 0, width, height); };
  const player = makePlayer({ sound, label: image.alt, width, height, paintWave });
  root.classList.add("mgkit");
  root.prepend(element("style", { textContent: STYLE }));
  // A picture that follows the theme still does.
  player.canvas.classList.add(...image.classList);
  image.replaceWith(player.canvas);
  // A player without a file name, as in a blind test, has nothing to keep.
  if (root.dataset.file) {
    const download = element("button", { title: `download ${root.dataset.file}` });
    player.name(download, "Download", "↓");
    download.onclick = () => save(Uint8Array.from(atob(sound.src.split(",")[1]), (c) => c.charCodeAt(0)), root.dataset.file);
    player.row.append(download);
  }
  sound.after(player.row);
  image.decode().then(player.draw, player.draw);
}

// Calls `report` once for each play of which a second, or a shorter sound as a whole, was heard.
function countPlays(root, report) {
  const sound = root.querySelector("audio");
  let heard = 0, at = 0, counted = true;
  const listen = () => {
    const step = sound.currentTime - at;
    at = sound.currentTime;
    // A longer step, or one back, is a jump.
    if (step > 0 && step < 1) heard += step;
    if (counted || heard < Math.min(1, 0.9 * sound.duration)) return;
    counted = true;
    report();
  };
  sound.addEventListener("play", () => { heard = 0; at = sound.currentTime; counted = false; });
  sound.addEventListener("timeupdate", listen);
}

// In a page, the script may run before its players are in the document.
function enhanceAll(tries = 100) {
  oneSound();
  const found = document.querySelectorAll(".mgkit-player:not([data-alive])");
  found.forEach(enhance);
  if (!found.length && tries) setTimeout(enhanceAll, 50, tries - 1);
}

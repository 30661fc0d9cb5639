// Pitch classes over time: 12 rows and a row of rests by F columns of cells, edited with the pointer or the arrow
// keys. Grey: detected; blue: current. Changes are sent to the kernel when the pointer is released.

const LEFT = 40, BELOW = 20, ROW = 16, REST = -1, HEIGHT = 14 * ROW + BELOW

function render({ model, el }) {
  const canvas = document.createElement("canvas")
  canvas.tabIndex = 0
  canvas.setAttribute("role", "application")
  canvas.setAttribute("aria-label", "pitch classes over time; arrow left and right move, up and down change the pitch class, delete makes a rest")
  canvas.style.cssText = `display: block; width: 100%; max-width: 800px; height: ${HEIGHT}px; touch-action: none; cursor: crosshair; outline: none; color: var(--jp-ui-font-color1, inherit)`
  el.append(canvas)
  const pen = canvas.getContext("2d")

  let values = [...model.get("values")]
  // The column changed by the arrow keys, and the cell under the pointer during a stroke.
  let at = 0
  let last = null
  let width = 800
  const column = () => (width - LEFT) / Math.max(1, values.length)

  // Fit the canvas to the page.
  function fit() {
    width = canvas.clientWidth || 800
    const scale = window.devicePixelRatio || 1
    canvas.width = width * scale
    canvas.height = HEIGHT * scale
    pen.setTransform(scale, 0, 0, scale, 0, 0)
    draw()
  }

  function cell(frame, pitch, color) {
    pen.fillStyle = color
    // Rests are in the row below C.
    const thin = pitch == REST ? 5 : 1
    pen.fillRect(LEFT + frame * column(), (11 - pitch) * ROW + thin, Math.max(1, column() - (column() > 4 ? 1 : 0)), ROW - 2 * thin)
  }

  function draw() {
    pen.clearRect(0, 0, width, HEIGHT)
    pen.font = "11px sans-serif"
    // The page's text colour, light or dark.
    const ink = getComputedStyle(canvas).color
    for (const [row, name] of [...model.get("names")].reverse().concat("rest", "chord").entries()) {
      pen.fillStyle = ink
      pen.fillText(name, 2, (row + 1) * ROW - 4)
      pen.globalAlpha = 0.12
      pen.fillRect(LEFT, (row + 1) * ROW, width - LEFT, 1)
      pen.globalAlpha = 1
    }
    const frame = model.get("frame")
    // Seconds, as many as have room.
    const every = Math.ceil(28 / Math.max(0.1, column() / frame))
    for (let second = 0; second < (values.length - 2) * frame; second += every) {
      pen.fillStyle = ink
      pen.fillText(`${second}${second ? "" : " s"}`, LEFT + (second / frame) * column(), HEIGHT - 5)
    }
    model.get("detected").forEach((pitch, frame) => cell(frame, pitch, "#8a8f98aa"))
    const chords = model.get("chords"), names = model.get("chord_names")
    if (chords.length) {
      // In place of the melody, which stays in grey.
      values.forEach((pitch, frame) => cell(frame, pitch, "#8a8f9866"))
      chords.forEach((pitches, frame) => pitches.forEach((pitch) => cell(frame, pitch, "#2a7fbf")))
      pen.fillStyle = ink
      names.forEach((name, i) => pen.fillText(name, LEFT + (i * (width - LEFT)) / names.length + 2, 14 * ROW - 4))
    } else values.forEach((pitch, frame) => cell(frame, pitch, "#2a7fbf"))
    if (document.activeElement === canvas) {
      pen.strokeStyle = ink
      pen.strokeRect(LEFT + at * column(), 0.5, column(), 13 * ROW)
    }
  }

  // A stroke may leave the canvas at the top: C follows B, for pitch classes have no octave.
  function under(event) {
    const box = canvas.getBoundingClientRect()
    const frame = Math.floor((event.clientX - box.left - LEFT) / column())
    const row = Math.floor((event.clientY - box.top) / ROW)
    const pitch = row >= 12 ? REST : (((11 - row) % 12) + 12) % 12
    return [Math.min(values.length - 1, Math.max(0, frame)), pitch]
  }

  function drawTo([frame, pitch]) {
    const [from, before] = last ?? [frame, pitch]
    // A quick stroke skips columns: they keep the note that it came from, and no note in between sounds.
    const step = Math.sign(frame - from)
    for (let i = from; i != frame; i += step) values[i] = before
    values[frame] = pitch
    last = [frame, pitch]
    at = frame
    draw()
  }

  function send() {
    last = null
    model.set("values", [...values])
    model.save_changes()
  }

  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId)
    drawTo(under(event))
  }
  canvas.onpointermove = (event) => last && drawTo(under(event))
  canvas.onpointerup = canvas.onpointercancel = () => last && send()
  canvas.onfocus = canvas.onblur = draw
  canvas.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    const change = { ArrowUp: 1, ArrowDown: 11, Delete: 0, Backspace: 0 }[event.key]
    if (!move && change === undefined) return
    event.preventDefault()
    // The notebook must not handle these keys too.
    event.stopPropagation()
    if (move) at = Math.min(values.length - 1, Math.max(0, at + move))
    else {
      // From a rest, up begins with C and down with B.
      values[at] = change ? (values[at] == REST && change == 11 ? 11 : (values[at] + change) % 12) : REST
      send()
    }
    draw()
  }

  function changed() {
    values = [...model.get("values")]
    at = Math.min(at, Math.max(0, values.length - 1))
    draw()
  }
  model.on("change:values change:detected change:frame change:chords change:chord_names", changed)
  // The width and the colours are known once the canvas is on the page.
  const watch = new ResizeObserver(fit)
  watch.observe(canvas)
  // Another theme, of the notebook or of the system.
  const theme = new MutationObserver(draw)
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-name"] })
  const system = matchMedia("(prefers-color-scheme: dark)")
  system.addEventListener("change", draw)
  return () => {
    watch.disconnect()
    theme.disconnect()
    system.removeEventListener("change", draw)
    model.off("change:values change:detected change:frame change:chords change:chord_names", changed)
  }
}

export default { render }

// Pitch classes over time: 12 rows by F columns of cells, edited with the pointer or the arrow keys.
// Grey: detected; blue: current. Changes are sent to the kernel when the pointer is released.

const LEFT = 28, BELOW = 20, ROW = 16, WIDTH = 800, HEIGHT = 12 * ROW + BELOW

function render({ model, el }) {
  const canvas = document.createElement("canvas")
  const scale = window.devicePixelRatio || 1
  canvas.width = WIDTH * scale
  canvas.height = HEIGHT * scale
  canvas.tabIndex = 0
  canvas.setAttribute("role", "application")
  canvas.setAttribute("aria-label", "pitch classes over time; arrow left and right move, up and down change the pitch class")
  canvas.style.cssText = `width: ${WIDTH}px; max-width: 100%; touch-action: none; cursor: crosshair; outline: none; color: var(--jp-ui-font-color1, inherit)`
  el.append(canvas)
  const pen = canvas.getContext("2d")
  pen.scale(scale, scale)

  let values = [...model.get("values")]
  // The column changed by the arrow keys, and the cell under the pointer during a stroke.
  let at = 0
  let last = null
  const column = (WIDTH - LEFT) / values.length

  function cell(frame, pitch, color) {
    pen.fillStyle = color
    pen.fillRect(LEFT + frame * column, (11 - pitch) * ROW + 1, Math.max(1, column - 1), ROW - 2)
  }

  function draw() {
    pen.clearRect(0, 0, WIDTH, HEIGHT)
    pen.font = "11px sans-serif"
    // The page's text colour, light or dark.
    const ink = getComputedStyle(canvas).color
    for (const [pitch, name] of model.get("names").entries()) {
      pen.fillStyle = ink
      pen.fillText(name, 2, (12 - pitch) * ROW - 4)
      pen.globalAlpha = 0.12
      pen.fillRect(LEFT, (12 - pitch) * ROW, WIDTH - LEFT, 1)
      pen.globalAlpha = 1
    }
    const frame = model.get("frame")
    for (let second = 0; second < (values.length - 2) * frame; second++) {
      pen.fillStyle = ink
      pen.fillText(`${second}${second ? "" : " s"}`, LEFT + (second / frame) * column, HEIGHT - 5)
    }
    model.get("detected").forEach((pitch, frame) => cell(frame, pitch, "#8a8f98aa"))
    values.forEach((pitch, frame) => cell(frame, pitch, "#2a7fbf"))
    if (document.activeElement === canvas) {
      pen.strokeStyle = ink
      pen.strokeRect(LEFT + at * column, 0.5, column, 12 * ROW)
    }
  }

  function under(event) {
    const box = canvas.getBoundingClientRect()
    const zoom = WIDTH / box.width
    const frame = Math.floor(((event.clientX - box.left) * zoom - LEFT) / column)
    const pitch = 11 - Math.floor(((event.clientY - box.top) * zoom) / ROW)
    return [Math.min(values.length - 1, Math.max(0, frame)), Math.min(11, Math.max(0, pitch))]
  }

  function drawTo([frame, pitch]) {
    const [from, before] = last ?? [frame, pitch]
    // A quick stroke skips columns: interpolate.
    const steps = Math.max(1, Math.abs(frame - from))
    for (let i = 0; i <= steps; i++) {
      values[Math.round(from + ((frame - from) * i) / steps)] = Math.round(before + ((pitch - before) * i) / steps)
    }
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
    const change = { ArrowUp: 1, ArrowDown: 11 }[event.key]
    if (!move && !change) return
    event.preventDefault()
    // The notebook must not handle these keys too.
    event.stopPropagation()
    if (move) at = Math.min(values.length - 1, Math.max(0, at + move))
    if (change) {
      values[at] = (values[at] + change) % 12
      send()
    }
    draw()
  }

  function changed() {
    values = [...model.get("values")]
    draw()
  }
  model.on("change:values", changed)
  // The colours are known once the canvas is on the page.
  requestAnimationFrame(draw)
  return () => model.off("change:values", changed)
}

export default { render }

"""Widgets of an executed notebook as HTML that needs no kernel: the panels as they stood at the end.

    widget state in the notebook -> `Frozen.html` of each widget output -> page
                                 -> `Frozen.script`, once a page: the widgets that draw themselves

ipywidgets' own controls become disabled controls of HTML with the classes that JupyterLab gives them, so that
style sheets of panels apply. An anywidget brings its own view, which `frozen.js` runs on the saved state:
players play, and everything else is a picture.
"""

import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

STYLE = f"<style>{Path(__file__).with_name('frozen.css').read_text(encoding='utf-8')}</style>"
SCRIPT = Path(__file__).with_name("frozen.js").read_text(encoding="utf-8")
REFERENCE = "IPY_MODEL_"


class Frozen:
    """The widgets of one notebook.

    `state` is what the notebook saves under `widgets`: model id → `model_name` and `state`.
    """

    def __init__(self, state: Mapping[str, Mapping[str, Any]]):
        self._models = state
        # Of the anywidgets shown so far, their states, and their scripts by digest.
        self._shown: dict[str, dict[str, Any]] = {}
        self._scripts: dict[str, str] = {}

    def html(self, model: str) -> str:
        """HTML of the widget with this model id; empty if the notebook has no state of it."""
        view = self._view(model)
        return view and f'<div class="mgkit-frozen">{view}</div>'

    def script(self) -> str:
        """Style and script for all widgets whose HTML was asked for; empty if there are none."""
        if not self._shown:
            return STYLE
        data = json.dumps({"scripts": self._scripts, "models": self._shown}).replace("</", "<\\/")
        return (
            f'{STYLE}<script type="application/json" id="mgkit-frozen">{data}</script>'
            f'<script type="module">{SCRIPT}</script>'
        )

    def _view(self, reference: str) -> str:
        model = self._models.get(reference.removeprefix(REFERENCE))
        if not model:
            return ""
        kind, state = str(model["model_name"]).removesuffix("Model"), model["state"]
        draw = getattr(self, f"_draw_{kind.lower()}", None)
        if kind == "Any":
            inner, tag, own = self._any(reference.removeprefix(REFERENCE), state), "div", ""
        elif draw:
            inner, tag, own = draw(state)
        else:
            inner, tag, own = f"<em>{escape(kind)}: in the running notebook</em>", "div", ""
        classes = " ".join(["jupyter-widgets", own, *state.get("_dom_classes", ())])
        disabled = " disabled" if tag == "button" else ""
        return f'<{tag} class="{escape(classes)}" style="{self._layout(state)}"{disabled}>{inner}</{tag}>'

    def _layout(self, state: Mapping[str, Any]) -> str:
        layout = self._models.get(str(state.get("layout")).removeprefix(REFERENCE), {}).get("state", {})
        rules = [
            f"{name.replace('_', '-')}: {value}"
            for name, value in layout.items()
            if value is not None and not name.startswith("_")
        ]
        return escape("; ".join(rules))

    # --- by model name: content, element and classes --------------------------------------------------------

    def _children(self, state: Mapping[str, Any]) -> str:
        return "".join(map(self._view, state.get("children", ())))

    def _draw_vbox(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return self._children(state), "div", "widget-container widget-box widget-vbox"

    def _draw_hbox(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return self._children(state), "div", "widget-container widget-box widget-hbox"

    _draw_box = _draw_hbox

    def _draw_accordion(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        titles = [*state.get("titles", ()), *[""] * len(state["children"])]
        folds = [
            f"<details{' open' if i == state.get('selected_index') else ''}><summary>{escape(titles[i])}"
            f"</summary>{self._view(child)}</details>"
            for i, child in enumerate(state["children"])
        ]
        return "".join(folds), "div", "widget-accordion"

    _draw_tab = _draw_accordion

    def _draw_html(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        content = f'<div class="widget-html-content">{state.get("value", "")}</div>'
        return _label(state) + content, "div", "widget-inline-hbox widget-html"

    _draw_htmlmath = _draw_html

    def _draw_label(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return escape(str(state.get("value", ""))), "div", "widget-inline-hbox widget-label"

    def _draw_text(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        value, hint = (escape(str(state.get(name) or "")) for name in ("value", "placeholder"))
        # Zero is a number, though it counts as false.
        value = "0" if state.get("value") == 0 else value
        return (
            f'{_label(state)}<input type="text" value="{value}" placeholder="{hint}" disabled>',
            "div",
            "widget-inline-hbox widget-text",
        )

    _draw_inttext = _draw_floattext = _draw_boundedinttext = _draw_boundedfloattext = _draw_combobox = (
        _draw_text
    )

    def _draw_textarea(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        content = f"<textarea disabled>{escape(str(state.get('value', '')))}</textarea>"
        return _label(state) + content, "div", "widget-inline-hbox widget-textarea"

    def _draw_intslider(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        numbers = {name: state.get(name) for name in ("min", "max", "step", "value")}
        settings = " ".join(f'{name}="{escape(str(number))}"' for name, number in numbers.items())
        return _slider(state, settings, f"{state.get('value'):g}")

    _draw_floatslider = _draw_intslider

    def _draw_floatlogslider(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return _slider(state, "", f"{state.get('value'):g}")

    def _draw_selectionslider(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        labels, index = state["_options_labels"], state.get("index") or 0
        return _slider(state, f'min="0" max="{len(labels) - 1}" value="{index}"', str(labels[index]))

    def _draw_dropdown(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        options = "".join(
            f"<option{' selected' if i == state.get('index') else ''}>{escape(str(name))}</option>"
            for i, name in enumerate(state["_options_labels"])
        )
        content = f"<select disabled>{options}</select>"
        return _label(state) + content, "div", "widget-inline-hbox widget-dropdown"

    _draw_select = _draw_dropdown

    def _draw_togglebuttons(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        buttons = "".join(
            f'<button class="jupyter-button widget-toggle-button'
            f'{" mod-active" if i == state.get("index") else ""}" disabled>{escape(str(name))}</button>'
            for i, name in enumerate(state["_options_labels"])
        )
        return f"{_label(state)}<div>{buttons}</div>", "div", "widget-inline-hbox widget-toggle-buttons"

    _draw_radiobuttons = _draw_togglebuttons

    def _draw_checkbox(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        checked = " checked" if state.get("value") else ""
        content = (
            f'<label><input type="checkbox"{checked} disabled> {escape(state.get("description", ""))}</label>'
        )
        return content, "div", "widget-inline-hbox widget-checkbox"

    def _draw_button(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        style = f"mod-{state['button_style']}" if state.get("button_style") else ""
        return escape(state.get("description", "")), "button", f"jupyter-button widget-button {style}"

    _draw_togglebutton = _draw_button

    def _draw_fileupload(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return escape(state.get("description", "Upload")), "button", "jupyter-button widget-upload"

    def _draw_floatprogress(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        low, high, value = (float(state.get(name) or 0) for name in ("min", "max", "value"))
        share = (value - low) / (high - low) if high > low else 0
        bar = f'<div class="progress"><div class="progress-bar" style="width: {share:.1%}"></div></div>'
        return _label(state) + bar, "div", "widget-inline-hbox widget-hprogress"

    _draw_intprogress = _draw_floatprogress

    def _draw_output(self, state: Mapping[str, Any]) -> tuple[str, str, str]:
        return "".join(map(_output, state.get("outputs", ()))), "div", "widget-output"

    def _any(self, model: str, state: Mapping[str, Any]) -> str:
        script = str(state.get("_esm", ""))
        digest = hashlib.sha256(script.encode()).hexdigest()[:12]
        self._scripts[digest] = script
        kept = {name: value for name, value in state.items() if not name.startswith("_")}
        self._shown[model] = {"script": digest, "state": kept}
        return f'<div data-frozen="{escape(model)}"></div>'


def _label(state: Mapping[str, Any]) -> str:
    text = state.get("description") or ""
    return f'<label class="widget-label">{escape(text)}</label>' if text else ""


def _slider(state: Mapping[str, Any], settings: str, value: str) -> tuple[str, str, str]:
    track = f'<div class="slider-container"><input type="range" {settings} disabled></div>'
    readout = f'<div class="widget-readout">{escape(value)}</div>' if state.get("readout", True) else ""
    return _label(state) + track + readout, "div", "widget-inline-hbox widget-slider widget-hslider"


def _output(output: Mapping[str, Any]) -> str:
    """HTML of one output inside an Output widget."""
    if output["output_type"] == "stream":
        return f"<pre>{escape(output['text'])}</pre>"
    if output["output_type"] == "error":
        return f"<pre>{escape(output['ename'])}: {escape(output['evalue'])}</pre>"
    data = output.get("data", {})
    if "text/html" in data:
        return "".join(data["text/html"])
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    return f"<pre>{escape(''.join(data.get('text/plain', '')))}</pre>"

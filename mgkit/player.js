export default () => ({ render({ el }) { el.textContent = "…"; } });
function enhanceWhenShown(id) {}

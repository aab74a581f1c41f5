// Contrast ratio (WCAG 2) of every visible text of the page with what is behind it, with its beginning.
() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const linear = (channel) => (channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => {
    for (let above = node; above; above = above.parentElement) {
      const colour = rgba(getComputedStyle(above).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(matchMedia("(prefers-color-scheme: dark)").matches ? "black" : "white");
  };
  const ratios = [];
  for (const node of document.querySelectorAll("body *:not(script, style, noscript, option, optgroup)")) {
    const own = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest("[disabled], .x-unseen, svg")) continue;
    const [text, ground] = [luminance(rgba(getComputedStyle(node).color)), luminance(behind(node))];
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    ratios.push([ratio, `${node.className}: ${node.textContent.slice(0, 40)}`]);
  }
  return ratios;
}

// Controls and pictures that have no name for those who do not see them.
() => {
  const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim()
    || document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
  return [...document.querySelectorAll("#explorer :is(input, select, button, canvas, dialog, [role=grid], [role=img])")]
    .filter((node) => !node.closest("[hidden]") && !named(node))
    .map((node) => node.outerHTML);
}

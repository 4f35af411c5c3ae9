// The form works without this script. After htmx has replaced the form, the keyboard continues where something is new:
// at the summary of mistakes, at the row that was added, or at the list that lost a row.
"use strict";

let pressed = "";

document.addEventListener("click", (event) => {
  const button = event.target.closest("#train-form button[name=do]");
  pressed = button ? button.value : "";
});

document.addEventListener("htmx:afterSwap", () => {
  const path = pressed.startsWith("add:") ? pressed.slice(4) : pressed.replace(/^remove:/, "").replace(/\[\d+\]$/, "");
  const list = path ? document.getElementById(path) : null;
  const rows = list ? list.querySelectorAll(":scope > fieldset") : [];
  const added = pressed.startsWith("add:") && rows.length ? rows[rows.length - 1].querySelector("input, select, textarea") : list;
  pressed = "";
  (document.getElementById("form-errors") || added)?.focus();
});

// A link of the summary opens what its field is folded in.
document.addEventListener("click", (event) => {
  const link = event.target.closest("#form-errors a");
  const field = link && document.getElementById(decodeURIComponent(link.hash.slice(1)));
  for (let parent = field; parent; parent = parent.parentElement) {
    if (parent.tagName === "DETAILS") parent.open = true;
  }
});

// The editor of the scenario. It shows the scenario in force until it is changed.
"use strict";

const editor = {
  section: $("editor-section"), text: $("editor-text"), numbers: $("editor-numbers"), mark: $("editor-mark"),
  loaded: "",  // the text in force when it was loaded
  of: "",  // which scenario that was
  line: 0,  // of the mistake; 0: none
  isChanged() { return this.text.value !== this.loaded; },
};

// To be called when another scenario is in force, which `of` tells.
async function showScenario(of) {
  if (!editor.section.open || editor.of === of) return;
  if (editor.of && editor.isChanged()) {
    showEditorMessage("Another scenario is in force now; Reload shows it.", "warn");
    return;
  }
  const isFirst = !editor.of;
  editor.of = of;
  await reloadScenario();
  if (isFirst) editor.text.scrollTop = 0;
}

async function reloadScenario() {
  const before = editor.text.value;
  const response = await fetch(`${scopePath()}scenario`, { headers: { Accept: "application/toml" } });
  editor.loaded = (await response.text()).replace(/\r\n?/g, "\n");
  editor.of = scenarioInForce;
  if (editor.text.value !== before) return;  // somebody types already
  setEditorText(editor.loaded);
  showEditorMessage("", "");
}

function setEditorText(text) {
  editor.text.value = text;
  markLine(0);
  numberLines();
}

// Show the numbers of all lines, scrolled as the text is.
function numberLines() {
  const count = editor.text.value.split("\n").length;
  if (editor.numbers.dataset.text !== `${count} ${editor.line}`) {
    editor.numbers.dataset.text = `${count} ${editor.line}`;
    editor.numbers.replaceChildren(...Array.from({ length: count }, (_, i) =>
      create("span", i + 1 === editor.line ? { class: "mistake" } : {}, `${i + 1}\n`)));
  }
  scrollEditor();
}

function scrollEditor() {
  editor.numbers.scrollTop = editor.text.scrollTop;
  editor.mark.style.transform = `translateY(${-editor.text.scrollTop}px)`;
}

// Mark the line of a mistake, put the caret there, and scroll to it; 0 removes the mark.
function markLine(line) {
  editor.line = line;
  editor.mark.hidden = !line;
  editor.text.setAttribute("aria-invalid", String(line > 0));
  if (line) {
    const { lineHeight, paddingTop } = getComputedStyle(editor.text);
    const top = (line - 1) * parseFloat(lineHeight);
    editor.mark.style.top = `${top + parseFloat(paddingTop)}px`;
    const lines = editor.text.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    editor.text.setSelectionRange(start, start + lines[line - 1].length);
    const { scrollTop, clientHeight } = editor.text;
    if (top < scrollTop || top > scrollTop + clientHeight - 40) editor.text.scrollTop = Math.max(0, top - clientHeight / 2);
  }
  numberLines();
}

function showEditorMessage(text, kind) {
  const message = $("editor-message");
  message.className = kind;
  setText(message, text);
}

// Send the text to the server, mark its mistake, and return the result if there is none.
async function sendScenario(method, path) {
  const { value } = editor.text;
  let response, result;
  try {
    response = await fetch(path, { method, headers: { "Content-Type": "application/toml" }, body: value });
    result = await response.json();
  } catch (error) {
    showEditorMessage("The server did not answer.", "bad");
    return null;
  }
  if (response.ok) {
    markLine(0);
    return result;
  }
  const last = value.trimEnd().split("\n").length;
  const line = result.error.endsWith("(at end of document)") ? last : result.line || 0;
  const text = result.error.replace(/^\w+ \/[\w/]+(:\d+)?: /, "");
  showEditorMessage(line ? `Line ${line}: ${text}` : text, "bad");
  markLine(line);
  if (line) editor.text.focus();
  return null;
}

async function checkScenario() {
  const result = await sendScenario("POST", "scenario/check");
  if (result) showEditorMessage(`No mistakes: ${plural(result.rules, "rule")}.`, "good");
}

async function applyScenario() {
  const { value } = editor.text;
  const result = await sendScenario("PUT", `${scopePath()}scenario`);
  if (!result) return;
  if (!result.ordered) await reloadScenario();
  else editor.loaded = value;
  editor.of = describeScenario(result);
  showEditorMessage(result.ordered ? `In force: ${plural(result.rules, "rule")}.`
    : "The text was empty, so the configured scenario is in force again.", "good");
}

editor.section.addEventListener("toggle", () => showScenario(scenarioInForce));
editor.text.addEventListener("scroll", scrollEditor);
editor.text.addEventListener("input", () => {
  markLine(0);
  showEditorMessage("", "");
});
$("editor-form").addEventListener("submit", (event) => {
  event.preventDefault();
  applyScenario();
});
$("editor-check").addEventListener("click", checkScenario);
$("editor-reload").addEventListener("click", reloadScenario);
$("editor-open").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) setEditorText((await file.text()).replace(/\r\n?/g, "\n"));
  showEditorMessage(file ? `${file.name} is not in force yet.` : "", "");
  event.target.value = "";
});
// A browser may keep the text of an earlier visit.
setEditorText("");

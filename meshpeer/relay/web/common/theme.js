// Light and dark: as the system has it, or as it was chosen here.

import { setAttribute, setText } from "./dom.js";
import { keep, recall } from "./storage.js";

const THEMES = ["system", "light", "dark"];
const LABELS = { system: "Auto", light: "Light", dark: "Dark" };

/** Takes the theme of before, and has `button` show it and change it. */
export function installTheme(button) {
  let theme = "system";
  const set = (name) => {
    theme = THEMES.includes(name) ? name : "system";
    document.documentElement.dataset.theme = theme;
    setText(button, LABELS[theme]);
    setAttribute(button, "aria-label", `Colours: ${theme === "system" ? "as the system" : theme}. Change`);
  };
  button.addEventListener("click", () => {
    set(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
    keep("local", "theme", theme);
  });
  set(recall("local", "theme"));
}

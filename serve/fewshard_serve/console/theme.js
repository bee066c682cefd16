// The theme that was chosen here before, set before the first paint; a classic script for that reason.
"use strict";
try {
  const chosen = localStorage.getItem("fewshard-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage may be forbidden; the system's theme it is */ }

// Applies the chosen theme before the first paint. A module would run too late, so this is a classic script.
"use strict";
try {
  const chosen = localStorage.getItem("fewshard-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage may be forbidden; the system's theme it is */ }

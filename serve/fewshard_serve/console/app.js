// The console: connects the parts and updates them.

import { askAgain, connect, token } from "./api.js";
import { Compare } from "./compare.js";
import { Composer } from "./composer.js";
import { $, fill, svg } from "./dom.js";
import { Experts } from "./experts.js";
import { Live } from "./live.js";
import { Models, showTable } from "./models.js";
import { Connection, every } from "./polling.js";
import { Tokens } from "./tokens.js";

const LIVE_S = 2, EXPERTS_S = 3, INDEX_S = 4;
const BACK_SHOWN_MS = 4000;

let backTimer = 0;
let needsToken = false;

const connection = new Connection(isThere, showConnection);
const models = new Models();
const live = new Live($("tiles"));
const tokens = new Tokens();
const compare = new Compare(live, tokens);
const experts = new Experts(models);
const composer = new Composer(models, {
  onsend: async (input, chosen) => {
    await compare.run(input, chosen);
    experts.poll().catch(() => {});
  },
  onclear: () => compare.clear(),
});

connect(askForToken, (isUp) => connection.note(isUp));
setUpTheme();
setUpToken();
await every(INDEX_S, refreshIndex, connection);
every(LIVE_S, async () => { await live.poll(); showTable($("models"), models.list, live); }, connection);
every(EXPERTS_S, () => experts.poll(), connection);

async function refreshIndex() {
  const isFirst = !models.list.length;
  showTokenButton();
  const hasChanged = await models.refresh();
  showTokenButton();
  $("version").textContent = models.version;
  if (isFirst) composer.start();
  composer.offer();
  if (hasChanged) showTable($("models"), models.list, live);
}

async function isThere() {
  try {
    return (await fetch("v2/health/live", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

function showConnection(state, wait) {
  const pill = $("connection"), banner = $("banner");
  pill.dataset.state = state === "gone" ? "gone" : "live";
  pill.lastElementChild.textContent = state === "gone" ? "server gone" : "live";
  if (state === "gone") say(`The server does not answer. Trying again in ${wait} s.`, "gone");
  if (state !== "back") return;
  say("The server is back.", "back");
  backTimer = setTimeout(() => { banner.hidden = true; }, BACK_SHOWN_MS);

  function say(text, kind) {
    clearTimeout(backTimer);
    Object.assign(banner, { hidden: false, textContent: text });
    banner.dataset.state = kind;
    // Keep screen readers from announcing every second of the countdown.
    banner.setAttribute("aria-live", kind === "gone" && !text.includes(" 1 s") ? "off" : "assertive");
  }
}

function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    const name = isDark() ? "Light theme" : "Dark theme";
    for (const key of ["aria-label", "title"]) $("theme").setAttribute(key, name);
    fill($("theme"), svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: isDark() ?
      "M12 7a5 5 0 1 0 0 10 5 5 0 0 0 0-10Zm0-5v3m0 14v3M2 12h3m14 0h3M4.9 4.9 7 7m10 10 2.1 2.1m0-14.2L17 7M7 17l-2.1 2.1" :
      "M20.5 14.5A8.5 8.5 0 0 1 9.5 3.5a8.5 8.5 0 1 0 11 11Z" })));
  };
  $("theme").addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try { localStorage.setItem("fewshard-theme", chosen); } catch { /* chosen again next time */ }
    show();
  });
  system.addEventListener("change", show);
  show();
}

function setUpToken() {
  $("token-button").addEventListener("click", () => {
    if (token.get()) {
      token.forget();
      location.reload();
    } else {
      askAgain();
      refreshIndex().catch(() => {});
    }
  });
}

function showTokenButton() {
  $("token-button").textContent = token.get() ? "Forget token" : "Give a token";
  $("token-button").hidden = !token.get() && !needsToken;
}

// Asks for a token. Resolves to true if one was entered.
function askForToken(isWrong) {
  needsToken = true;
  const dialog = $("token-dialog"), value = $("token-value");
  $("token-wrong").textContent = isWrong ? "The server does not know this token." : "";
  value.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = (isGiven) => { dialog.close(); resolve(isGiven); };
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      const given = value.value.trim();
      if (!given) return;
      token.set(given);
      done(true);
    };
    $("token-cancel").onclick = () => done(false);
    dialog.oncancel = (event) => { event.preventDefault(); done(false); };
  });
}


// Repeats work while the page is visible, and pauses while the server does not answer.

import { isAnswer } from "./api.js";

const FIRST_WAIT_S = 1, LONGEST_WAIT_S = 10;

// Calls `work` now and then every `seconds`, one call at a time, while the page is visible.
export function every(seconds, work, connection) {
  let timer = 0;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden && connection.isUp) {
      try { await work(); } catch (error) { if (!isAnswer(error)) console.error(error); }
    }
    timer = setTimeout(turn, 1000 * seconds);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
  connection.onReturn.push(turn);
  return turn();
}

// Watches whether the server answers. `show(state, wait)`: "live", or "gone" and the seconds to the next try.
export class Connection {
  isUp = true;
  onReturn = [];

  constructor(isThere, show) {
    this.isThere = isThere;
    this.show = show;
  }

  note(isUp) {
    if (isUp && this.isUp) this.show("live");
    else if (!isUp && this.isUp) this.#wait();
  }

  async #wait() {
    this.isUp = false;
    for (let wait = FIRST_WAIT_S; ; wait = Math.min(2 * wait, LONGEST_WAIT_S)) {
      for (let left = wait; left > 0; left--) {
        this.show("gone", left);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
      if (await this.isThere()) break;
    }
    this.isUp = true;
    this.show("back");
    this.onReturn.forEach((each) => each());
  }
}

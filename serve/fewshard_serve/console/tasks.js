// How the console handles each task. Models of other tasks only appear in the table.

// none: the message if no model takes such inputs.
// hint: the text beside the button.
// nothing: the message if there is no input.
// parts: the ids of the elements that are shown.
// examples: converts the examples of a model's card to inputs.
// request: returns the arguments of `call`.
export const TASKS = {
  text: {
    none: "No model that takes texts is ready.",
    hint: "Enter sends, Shift+Enter makes a new line",
    nothing: "Type a text first.",
    parts: ["text-input", "live-switch"],
    examples: (found) => found,
    request(path, inputs, top_k, signal) {
      const body = JSON.stringify({ inputs, top_k, routing: true });
      return [path, { method: "POST", body, headers: { "content-type": "application/json" }, signal }];
    },
  },
  image: {
    none: "No model that takes images is ready.",
    hint: "",
    nothing: "Choose an image first.",
    parts: ["image-input"],
    examples: (found) => found.flatMap(decoded),
    request(path, image, top_k, signal) {
      return [`${path}?top_k=${top_k}`, { method: "POST", body: image, headers: { "content-type": image.type }, signal }];
    },
  },
};

function decoded(base64, index) {
  try {
    const data = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return [new File([data], `example ${index + 1}`, { type: "image/png" })];
  } catch {
    return [];
  }
}

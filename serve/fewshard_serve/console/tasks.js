// What the console does with each kind of input. Models of any other kind are in its table alone.

// `none`: no model takes it; `hint`: beside the button; `nothing`: no input was given; `parts`: ids of what is
// shown for it; `examples`: inputs from those of a model's card; `request`: the arguments of `call`.
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

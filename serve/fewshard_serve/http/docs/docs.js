// Shows the server's OpenAPI document. The examples name a model of this server, so that they can be sent.

async function nameOfSomeModel() {
  try {
    const answer = await fetch("./", { headers: { Accept: "application/json" } });
    const { models } = await answer.json();
    const texts = models.filter((model) => model.task === "text");
    return (texts.find((model) => model.state === "READY") ?? texts[0])?.name;
  } catch {
    return undefined; // a token is needed, or the server is starting
  }
}

function withModel(text, name) {
  const spec = JSON.parse(name ? text.replaceAll('"{model}"', JSON.stringify(name)) : text);
  // A proxy may have mounted the server below a prefix.
  spec.servers = [{ url: new URL(".", document.baseURI).pathname.replace(/\/$/, "") || "/" }];
  for (const operations of Object.values(spec.paths)) {
    for (const { parameters } of Object.values(operations)) {
      for (const parameter of parameters) {
        if (name && parameter.in === "path" && parameter.name === "model") parameter.example = name;
      }
    }
  }
  return spec;
}

async function show() {
  const [answer, name] = await Promise.all([fetch("openapi.json"), nameOfSomeModel()]);
  SwaggerUIBundle({
    spec: withModel(await answer.text(), name),
    dom_id: "#swagger-ui",
    deepLinking: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0,
    validatorUrl: null, // it would fetch a badge from elsewhere
  });
}

show();

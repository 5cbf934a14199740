// Shows /openapi.json: routes with what they take and give. Text goes into the page as text, never as markup.
"use strict";

let schemas = {};

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const nameOf = (reference) => reference.split("/").pop();

// A schema without "or null", and whether null may stand for it.
function stripped(schema) {
  const options = schema.oneOf ?? schema.anyOf;
  if (options) {
    const rest = options.filter((option) => option.type !== "null");
    if (rest.length === 1) return { ...rest[0], description: schema.description ?? rest[0].description };
  }
  return schema;
}

function typeOf(given) {
  const schema = stripped(given);
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.allOf?.length === 1) return typeOf(schema.allOf[0]);
  if (schema.oneOf) return schema.oneOf.map(typeOf).join(" or ");
  const types = [schema.type].flat().filter((type) => type && type !== "null");
  if (types.includes("array")) return `array of ${typeOf(schema.items ?? {})}`;
  return types.join(" or ") || "any";
}

// The named schema that a field leads to, if any.
function targetOf(given) {
  const schema = stripped(given);
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.allOf?.length === 1) return targetOf(schema.allOf[0]);
  return schema.items ? targetOf(schema.items) : null;
}

function fields(schema, above) {
  const variants = schema.oneOf ?? schema.anyOf;
  if (variants) {
    return element("div", {}, ...variants.map((variant) => fields(variant, above)));
  }
  if (schema.$ref) return named(nameOf(schema.$ref), above);
  if (!schema.properties) return element("p", { class: "faint" }, typeOf(schema));
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties).map(([name, field]) =>
    element("tr", {},
      element("td", {}, element("code", {}, name), required.has(name) ? "" : element("span", { class: "faint" }, " optional")),
      element("td", {}, typeOf(field)),
      element("td", {}, field.description ?? stripped(field).description ?? "")));
  const head = element("tr", {}, ...["field", "type", "meaning"].map((text) => element("th", { scope: "col" }, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  const inner = [...new Set(Object.values(schema.properties).map(targetOf))].filter((name) => name && !above.includes(name));
  return element("div", {}, element("div", { class: "table" }, table), ...inner.map((name) => named(name, above)));
}

// A schema by its name, filled in when it is opened.
function named(name, above) {
  const schema = schemas[name];
  if (!schema) return element("p", { class: "faint" }, name);
  const details = element("details", {}, element("summary", {}, element("code", {}, name)));
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    if (schema.description) details.append(element("p", {}, schema.description));
    details.append(fields(schema, [...above, name]));
  });
  return details;
}

function content(title, contents) {
  const parts = Object.entries(contents ?? {}).map(([type, { schema }]) => {
    const target = schema ? targetOf(schema) : null;
    return element("div", {}, element("p", { class: "faint" }, `${title}: ${type}`), target ? named(target, []) : null);
  });
  return element("div", {}, ...parts);
}

function route(path, method, operation) {
  const id = `${method}${path}`;
  const title = element("summary", {}, element("span", { class: `method ${method}` }, method.toUpperCase()),
    element("code", {}, path), " ", operation.summary ?? operation.description ?? "");
  const details = element("details", { id }, title);
  if (operation.summary && operation.description) details.append(element("p", {}, operation.description));
  details.append(content("takes", operation.requestBody?.content));
  for (const [status, response] of Object.entries(operation.responses ?? {})) {
    details.append(content(status, response.content));
  }
  return details;
}

async function show() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json: ${answer.status}`);
  const description = await answer.json();
  schemas = description.components?.schemas ?? {};
  const about = document.getElementById("about");
  about.replaceChildren(`${description.info.description ?? ""} Version ${description.info.version}. From `,
    element("a", { href: "/openapi.json" }, "/openapi.json"), ".");
  const groups = new Map((description.tags ?? []).map((tag) => [tag.name, { tag, routes: [] }]));
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const name = operation.tags?.[0] ?? "other";
      if (!groups.has(name)) groups.set(name, { tag: { name }, routes: [] });
      groups.get(name).routes.push(route(path, method, operation));
    }
  }
  const main = document.getElementById("routes");
  const contents = document.getElementById("contents");
  for (const { tag, routes } of groups.values()) {
    main.append(element("h2", { id: tag.name }, tag.name), element("p", { class: "faint" }, tag.description ?? ""), ...routes);
    contents.append(element("a", { href: `#${tag.name}` }, tag.name));
  }
}

show().catch((error) => {
  document.getElementById("about").textContent = `The description could not be shown: ${error.message}`;
});

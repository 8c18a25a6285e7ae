//! The document as an HTML page, without scripts or external resources.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use utoipa::openapi::OpenApi;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
    padding:0 1rem}code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow:auto;\
    background:#f4f4f4;padding:1rem}h2{border-top:1px solid #ccc;padding-top:1rem}td,th{\
    text-align:left;vertical-align:top;padding:.1rem 1rem .1rem 0}";

pub(super) fn render(document: &OpenApi) -> String {
    // Serializing cannot fail: the same document is served as JSON.
    let document = serde_json::to_value(document).unwrap_or_default();
    let mut page = String::new();
    let title = text(document.pointer("/info/title"));
    push(
        &mut page,
        format_args!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1><p>{}</p>",
            text(document.pointer("/info/description"))
        ),
    );
    for (path, item) in members(document.pointer("/paths")) {
        for (method, operation) in members(Some(item)) {
            render_operation(&mut page, method, path, operation);
        }
    }
    page.push_str("<h1>Bodies</h1>");
    for (name, schema) in members(document.pointer("/components/schemas")) {
        let schema = serde_json::to_string_pretty(schema).unwrap_or_default();
        push(
            &mut page,
            format_args!("<h2 id=\"{0}\">{0}</h2><pre>{1}</pre>", escape(name), escape(&schema)),
        );
    }
    page.push_str("</body></html>");
    page
}

fn render_operation(page: &mut String, method: &str, path: &str, operation: &Value) {
    push(
        page,
        format_args!(
            "<h2><code>{} {}</code></h2><p>{}.</p><table>",
            method.to_ascii_uppercase(),
            escape(path),
            text(operation.pointer("/summary"))
        ),
    );
    for parameter in
        operation.pointer("/parameters").and_then(Value::as_array).into_iter().flatten()
    {
        push(
            page,
            format_args!(
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                text(parameter.pointer("/name")),
                text(parameter.pointer("/in")),
                text(parameter.pointer("/description"))
            ),
        );
    }
    let bodies: Vec<_> = members(operation.pointer("/requestBody/content")).collect();
    if let Some((media_type, content)) = bodies.first() {
        push(
            page,
            format_args!(
                "<tr><td>body</td><td>{}</td><td>{}</td></tr>",
                escape(media_type),
                link(content)
            ),
        );
    }
    for (status, response) in members(operation.pointer("/responses")) {
        let content = members(response.pointer("/content")).next();
        push(
            page,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(status),
                text(response.pointer("/description")),
                content.map(|(_, content)| link(content)).unwrap_or_default()
            ),
        );
    }
    page.push_str("</table>");
}

fn link(content: &Value) -> String {
    let reference = content.pointer("/schema/$ref").and_then(Value::as_str).unwrap_or_default();
    let name = escape(reference.rsplit('/').next().unwrap_or_default());
    format!("<a href=\"#{name}\">{name}</a>")
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn text(value: Option<&Value>) -> String {
    escape(value.and_then(Value::as_str).unwrap_or_default())
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = page.write_fmt(text);
}

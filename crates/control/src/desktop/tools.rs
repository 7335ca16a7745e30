//! Tools that a model is given so that it drives the desktop: declarations, in the forms in which models take them.

use roost_api::{ComputerId, ToolFormat, Tools};
use serde_json::{Value, json};

use crate::{Control, Failure};

const NAME: &str = "computer";

impl Control {
    pub async fn tools(&self, id: ComputerId, format: ToolFormat) -> Result<Tools, Failure> {
        let screen = self.screen_size(id).await?;
        Ok(Tools { tools: vec![declared(format, &description(screen.width, screen.height), &schema())] })
    }
}

fn declared(format: ToolFormat, description: &str, schema: &Value) -> Value {
    match format {
        ToolFormat::Anthropic => json!({ "name": NAME, "description": description, "input_schema": schema }),
        ToolFormat::Openai => json!({
            "type": "function",
            "function": { "name": NAME, "description": description, "parameters": schema },
        }),
        ToolFormat::Mcp => json!({ "name": NAME, "description": description, "inputSchema": schema }),
    }
}

fn description(width: u32, height: u32) -> String {
    format!(
        "Uses a Linux desktop with mouse and keyboard. The screen is {width}x{height} pixels; coordinates are pixels \
         from its top left corner. Does the actions in order. Ask for a screenshot to see what became of them: it is \
         taken when the screen has settled."
    )
}

/// Flat, without alternatives and references: what every model understands. The server says what is missing.
fn schema() -> Value {
    let integer = |text: &str| json!({ "type": "integer", "description": text });
    let region = |text: &str| {
        let side = json!({ "type": "integer", "minimum": 1 });
        let start = json!({ "type": "integer" });
        json!({
            "type": "object",
            "description": text,
            "properties": { "x": start, "y": start, "width": side, "height": side },
            "required": ["x", "y", "width", "height"],
        })
    };
    let action = json!({
        "type": "object",
        "properties": {
            "type": {
                "type": "string",
                "enum": TYPES,
                "description": "click, double_click, triple_click, right_click, move: at x, y. drag: from_x, from_y, \
                    to_x, to_y. scroll: direction, clicks, at x, y. type: text. key: key. hotkey: keys. key_down, \
                    key_up: key. mouse_down, mouse_up: button, at x, y. wait: seconds. wait_for_change: until \
                    something is drawn after the action before it. wait_until_settled: until nothing is drawn for \
                    quiet_ms.",
            },
            "x": integer("Pixels from the left"),
            "y": integer("Pixels from the top"),
            "button": { "type": "string", "enum": ["left", "middle", "right"], "description": "left by default" },
            "from_x": integer("Where a drag begins"),
            "from_y": integer("Where a drag begins"),
            "to_x": integer("Where a drag ends"),
            "to_y": integer("Where a drag ends"),
            "direction": { "type": "string", "enum": ["up", "down", "left", "right"] },
            "clicks": integer("Of the wheel, 0 to 100; 3 by default"),
            "text": { "type": "string", "description": "Typed as it is; a line break is the Return key" },
            "key": { "type": "string", "description": "A key or a combination: Return, Escape, ctrl+c, alt+F4" },
            "keys": { "type": "array", "items": { "type": "string" }, "description": "Pressed together" },
            "seconds": { "type": "number", "minimum": 0, "maximum": 60 },
            "quiet_ms": integer("How long nothing is drawn; 500 by default"),
            "timeout_ms": integer("How long to wait for the screen at most; 5000 by default"),
            "region": region("The part of the screen that is waited for; all of it by default"),
        },
        "required": ["type"],
    });
    json!({
        "type": "object",
        "properties": {
            "actions": { "type": "array", "minItems": 1, "maxItems": 100, "items": action },
            "screenshot": {
                "type": "object",
                "description": "Present: the answer has a picture of the screen after the actions",
                "properties": {
                    "region": region("A part of the screen; all of it by default"),
                    "scale": { "type": "number", "minimum": 0.1, "maximum": 1 },
                    "cursor": { "type": "boolean", "description": "Whether the pointer is in the picture" },
                },
            },
        },
        "required": ["actions"],
    })
}

const TYPES: [&str; 17] = [
    "click",
    "double_click",
    "triple_click",
    "right_click",
    "move",
    "mouse_down",
    "mouse_up",
    "drag",
    "scroll",
    "type",
    "key",
    "hotkey",
    "key_down",
    "key_up",
    "wait",
    "wait_for_change",
    "wait_until_settled",
];

#[cfg(test)]
mod tests {
    use roost_api::DesktopAction;

    use super::*;

    /// A value of the kind that the schema declares.
    fn some(property: &Value) -> Value {
        match (property.get("enum").and_then(Value::as_array), property["type"].as_str()) {
            (Some(values), _) => values[0].clone(),
            (None, Some("integer" | "number")) => json!(1),
            (None, Some("boolean")) => json!(true),
            (None, Some("string")) => json!("a"),
            (None, Some("array")) => json!(["a"]),
            (None, Some("object")) => {
                let properties = property["properties"].as_object().unwrap();
                properties.iter().map(|(name, property)| (name.clone(), some(property))).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_schema_declares_is_what_the_server_reads() {
        let schema = schema();
        let action = &schema["properties"]["actions"]["items"];
        let mut filled = some(action);
        for kind in TYPES {
            filled["type"] = json!(kind);
            serde_json::from_value::<DesktopAction>(filled.clone()).expect(kind);
        }
        filled["type"] = json!("no such thing");
        let error = serde_json::from_value::<DesktopAction>(filled).unwrap_err().to_string();
        // serde names all there are.
        assert_eq!(error.matches('`').count(), 2 * (TYPES.len() + 1), "{error}");
        let request =
            json!({ "actions": [some(action)], "screenshot": some(&schema["properties"]["screenshot"]) });
        serde_json::from_value::<roost_api::ActionsRequest>(request).unwrap();
    }

    #[test]
    fn each_format_has_the_schema_where_its_models_look() {
        let schema = json!({ "type": "object" });
        let at = |format, pointer: &str| declared(format, "text", &schema).pointer(pointer).cloned();
        assert_eq!(at(ToolFormat::Anthropic, "/input_schema"), Some(schema.clone()));
        assert_eq!(at(ToolFormat::Openai, "/function/parameters"), Some(schema.clone()));
        assert_eq!(at(ToolFormat::Mcp, "/inputSchema"), Some(schema.clone()));
        for (format, name) in [
            (ToolFormat::Anthropic, "/name"),
            (ToolFormat::Openai, "/function/name"),
            (ToolFormat::Mcp, "/name"),
        ] {
            assert_eq!(at(format, name), Some(json!(NAME)));
        }
    }
}

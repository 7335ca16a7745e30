//! What programs say of what they show: the accessibility tree of a desktop. Places are pixels of the screen.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::ScreenRegion;

/// How a tree is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TreeFormat {
    /// Nested nodes with all there is to know.
    #[default]
    Tree,
    /// One line an element, and only what a reader needs: about a tenth of the length.
    Compact,
}

/// Which elements a tree has.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TreeQuery {
    /// Whether only what is on the screen is in it, which is the default; `false` adds closed menus, tabs behind others,
    /// minimized windows, and what is scrolled out of sight.
    #[serde(default)]
    pub visible: Option<bool>,
    /// `true` leaves out what cannot be pressed, filled in or chosen; windows stay.
    #[serde(default)]
    pub interactive: Option<bool>,
    /// One window: the `id` that the list of windows has, or a part of its title.
    #[serde(default)]
    pub window: Option<String>,
    /// Levels below the desktop: 1 is windows without what is in them.
    #[serde(default)]
    pub depth: Option<u32>,
    /// At most so many elements, 1 to 5000, 1000 by default.
    #[serde(default)]
    pub limit: Option<u32>,
    /// `tree` by default.
    #[serde(default)]
    pub format: Option<TreeFormat>,
}

/// Which elements are looked for. All that is given must be so.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FindQuery {
    /// A role as trees have it, such as `button`, `check box`, `entry`, `link`.
    #[serde(default)]
    pub role: Option<String>,
    /// A part of the name, whatever the case.
    #[serde(default)]
    pub name: Option<String>,
    /// As for the tree.
    #[serde(default)]
    pub window: Option<String>,
    /// As for the tree: only what is on the screen by default.
    #[serde(default)]
    pub visible: Option<bool>,
    /// As for the tree.
    #[serde(default)]
    pub interactive: Option<bool>,
    /// At most so many elements, 1 to 5000, 100 by default.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// One element of what a program shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccessibleNode {
    /// The same from call to call for as long as the element lives.
    #[schema(example = "23/45")]
    pub id: String,
    /// What it is, in the words of AT-SPI: `frame`, `button`, `check box`, `entry`, `link`, `menu item`.
    pub role: String,
    /// What it is called: the text on it, or of its label.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where it is; null for what has no place.
    pub bounds: Option<Bounds>,
    /// In the words of AT-SPI: `showing`, `focused`, `checked`, `sensitive`, `editable`.
    pub states: Vec<String>,
    /// The text in it where that is not its name, up to 2000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The number of a slider, a spin button, a progress bar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Of a window: the program, as it names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Of a window: its `id` in the list of windows. Panels and menus are in no such list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    #[schema(no_recursion)]
    pub children: Vec<AccessibleNode>,
}

/// A place on the screen, or beside it for what is out of sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bounds {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

impl Bounds {
    pub fn meets(&self, region: &ScreenRegion) -> bool {
        let meets = |from: i32, length: u32, other: i32, other_length: u32| {
            let (from, other) = (i64::from(from), i64::from(other));
            length > 0 && from < other + i64::from(other_length) && other < from + i64::from(length)
        };
        meets(self.x, self.width, region.x, region.width)
            && meets(self.y, self.height, region.y, region.height)
    }
}

/// The desktop with its windows, the topmost first, and what is in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccessibilityTree {
    #[serde(flatten)]
    pub desktop: AccessibleNode,
    /// Whether there is more than a limit let through: ask for one window, or for `interactive` elements.
    pub truncated: bool,
    /// Programs that have not answered in time, and whose windows are not in the tree.
    pub unanswered: Vec<String>,
}

/// The same, to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompactTree {
    /// One line an element: `id role "name" [states] x,y wxh`, indented by its depth, and where there is one
    /// `= text or value` at the end. Elements that only hold others in their places are left out.
    pub text: String,
    /// Lines of the text.
    pub count: usize,
    pub truncated: bool,
    pub unanswered: Vec<String>,
}

/// Either form of a tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TreeAnswer {
    Tree(Box<AccessibilityTree>),
    Compact(CompactTree),
}

/// What was found, in the order of the tree, without children.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FoundElements {
    pub elements: Vec<AccessibleNode>,
    pub truncated: bool,
    pub unanswered: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessibleAction {
    /// What a click does: press a button, follow a link, tick a box, open a menu.
    Press,
    /// Give it the keyboard.
    Focus,
    /// Replace the text of an entry, or set the number of a slider.
    SetValue,
}

/// Body of the route that acts on an element.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct AccessibleActionRequest {
    /// The `id` of an element.
    pub id: String,
    pub action: AccessibleAction,
    /// Of `set_value`: a text, or a number.
    #[serde(default)]
    pub value: Option<NewValue>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum NewValue {
    Number(f64),
    Text(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_touch_do_not_meet() {
        let screen = ScreenRegion { x: 0, y: 0, width: 100, height: 50 };
        let meets = |x, y, width, height| Bounds { x, y, width, height }.meets(&screen);
        assert!(meets(0, 0, 100, 50) && meets(-5, -5, 6, 6) && meets(99, 49, 10, 10));
        assert!(!meets(100, 0, 10, 10) && !meets(-5, 0, 5, 5) && !meets(5, 5, 0, 9) && !meets(5, 50, 1, 1));
        assert!(!meets(i32::MIN, i32::MIN, 5, 5) && meets(i32::MIN, 0, u32::MAX, 1));
    }

    #[test]
    fn values_are_texts_or_numbers() {
        let value = |json: &str| serde_json::from_str::<NewValue>(json).ok();
        assert_eq!(value("1.5"), Some(NewValue::Number(1.5)));
        assert_eq!(value("\"1.5\""), Some(NewValue::Text("1.5".to_owned())));
        assert_eq!(value("[1]"), None);
    }
}

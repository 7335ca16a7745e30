//! What AT-SPI calls things: its interfaces, roles and states, and how a widget is named in a request.

use std::fmt;

use roost_api::ApiError;
use zbus::{ObjectPath, OwnedObjectPath};

pub(super) const ACCESSIBLE: &str = "org.a11y.atspi.Accessible";
pub(super) const ACTION: &str = "org.a11y.atspi.Action";
pub(super) const CACHE: &str = "org.a11y.atspi.Cache";
pub(super) const COMPONENT: &str = "org.a11y.atspi.Component";
pub(super) const EDITABLE_TEXT: &str = "org.a11y.atspi.EditableText";
pub(super) const TEXT: &str = "org.a11y.atspi.Text";
pub(super) const VALUE: &str = "org.a11y.atspi.Value";

pub(super) const REGISTRY: &str = "org.a11y.atspi.Registry";
pub(super) const CACHE_PATH: &str = "/org/a11y/atspi/cache";
pub(super) const ROOT_PATH: &str = "/org/a11y/atspi/accessible/root";
const USUAL_PATH: &str = "/org/a11y/atspi/accessible/";
const USUAL_CONNECTION: &str = ":1.";

/// A widget: the program's connection to the bus, and its name for the widget. Both are given to nothing else later.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Reference {
    pub(super) connection: String,
    pub(super) path: String,
}

impl Reference {
    pub(super) fn new(connection: &str, path: &str) -> Self {
        Self { connection: connection.to_owned(), path: path.to_owned() }
    }

    /// Of an id: see [`fmt::Display`].
    pub(super) fn parse(id: &str) -> Result<Self, ApiError> {
        let malformed = || ApiError::field("id", "no id of an element: take one from the accessibility tree");
        let (connection, path) = id.split_once('/').ok_or_else(malformed)?;
        let is_written = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let connection = match connection.strip_prefix(':') {
            Some(rest) if is_written(rest) && rest.contains('.') => format!(":{rest}"),
            None if is_written(connection) => format!("{USUAL_CONNECTION}{connection}"),
            Some(_) | None => return Err(malformed()),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{USUAL_PATH}{path}") };
        ObjectPath::try_from(path.as_str()).map_err(|_| malformed())?;
        Ok(Self { connection, path })
    }
}

/// Short, because whoever reads a tree pays for each letter: `23/45` is the widget 45 of the connection `:1.23`. What
/// is named in another way keeps its whole names.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = self
            .connection
            .strip_prefix(USUAL_CONNECTION)
            .filter(|rest| !rest.is_empty())
            .unwrap_or(&self.connection);
        let path = self
            .path
            .strip_prefix(USUAL_PATH)
            .filter(|rest| !rest.is_empty() && !rest.starts_with('/'))
            .unwrap_or(&self.path);
        write!(f, "{connection}/{path}")
    }
}

/// A reference on the wire.
pub(super) type WireReference = (String, OwnedObjectPath);

impl From<WireReference> for Reference {
    fn from((connection, path): WireReference) -> Self {
        Self { connection, path: path.as_str().to_owned() }
    }
}

/// What a program tells of a widget when it tells of all: widget, program, parent, place among its siblings, number
/// of children (-1: it does not tell of them), interfaces, name, role, description, states.
pub(super) type CacheItem =
    (WireReference, WireReference, WireReference, i32, i32, Vec<String>, String, u32, String, Vec<u32>);

/// What a widget can be asked for, as far as anything here asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Interfaces {
    pub(super) action: bool,
    pub(super) component: bool,
    pub(super) editable_text: bool,
    pub(super) text: bool,
    pub(super) value: bool,
}

impl Interfaces {
    pub(super) fn new(names: &[String]) -> Self {
        let has = |wanted| names.iter().any(|name| name == wanted);
        Self {
            action: has(ACTION),
            component: has(COMPONENT),
            editable_text: has(EDITABLE_TEXT),
            text: has(TEXT),
            value: has(VALUE),
        }
    }
}

/// A set of states: bit n is the state with the number n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct States(pub(super) u64);

impl States {
    pub(super) fn new(words: &[u32]) -> Self {
        let word = |index: usize| u64::from(words.get(index).copied().unwrap_or_default());
        Self(word(0) | word(1) << 32)
    }

    pub(super) fn has(self, state: State) -> bool {
        self.0 & 1 << state as u64 != 0
    }

    /// In the order of their numbers.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        STATES.iter().enumerate().filter(move |(number, _)| self.0 & 1 << number != 0).map(|(_, name)| *name)
    }
}

/// Those that anything here looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Editable = 7,
    Enabled = 8,
    Focusable = 11,
    Sensitive = 24,
    Showing = 25,
}

const STATES: [&str; 44] = [
    "invalid",
    "active",
    "armed",
    "busy",
    "checked",
    "collapsed",
    "defunct",
    "editable",
    "enabled",
    "expandable",
    "expanded",
    "focusable",
    "focused",
    "has-tooltip",
    "horizontal",
    "iconified",
    "modal",
    "multi-line",
    "multiselectable",
    "opaque",
    "pressed",
    "resizable",
    "selectable",
    "selected",
    "sensitive",
    "showing",
    "single-line",
    "stale",
    "transient",
    "vertical",
    "visible",
    "manages-descendants",
    "indeterminate",
    "required",
    "truncated",
    "animated",
    "invalid-entry",
    "supports-autocompletion",
    "selectable-text",
    "is-default",
    "visited",
    "checkable",
    "has-popup",
    "read-only",
];

/// A role's name; `unknown` for one that came after this list.
pub(super) fn role_name(role: u32) -> &'static str {
    usize::try_from(role).ok().and_then(|role| ROLES.get(role)).copied().unwrap_or("unknown")
}

/// The number of a role by its name, in whatever way the name is written: `check box`, `check-box`, `CheckBox`.
pub(super) fn role_number(name: &str) -> Option<u32> {
    let letters = |text: &str| {
        text.chars()
            .filter(char::is_ascii_alphabetic)
            .map(|letter| letter.to_ascii_lowercase())
            .collect::<String>()
    };
    let wanted = match letters(name).as_str() {
        "pushbutton" => "button".to_owned(), // what it was called for long
        letters => letters.to_owned(),
    };
    let number = ROLES.iter().position(|role| letters(role) == wanted)?;
    u32::try_from(number).ok()
}

/// Whether it is there to be pressed, filled in or chosen from, by its role alone.
pub(super) fn is_control(role: u32) -> bool {
    matches!(
        role_name(role),
        "autocomplete"
            | "button"
            | "check box"
            | "check menu item"
            | "combo box"
            | "date editor"
            | "desktop icon"
            | "dial"
            | "editbar"
            | "entry"
            | "link"
            | "menu item"
            | "page tab"
            | "password text"
            | "push button menu"
            | "radio button"
            | "radio menu item"
            | "slider"
            | "spin button"
            | "switch"
            | "terminal"
            | "toggle button"
            | "tree item"
    )
}

/// Whether it only holds others in their places: nothing is lost where such an element without a name is left out.
pub(super) fn is_layout(role: u32) -> bool {
    matches!(
        role_name(role),
        "embedded"
            | "extended"
            | "filler"
            | "grouping"
            | "internal frame"
            | "layered pane"
            | "panel"
            | "redundant object"
            | "root pane"
            | "scroll bar"
            | "scroll pane"
            | "section"
            | "separator"
            | "split pane"
            | "unknown"
            | "viewport"
    )
}

const ROLES: [&str; 131] = [
    "invalid",
    "accelerator label",
    "alert",
    "animation",
    "arrow",
    "calendar",
    "canvas",
    "check box",
    "check menu item",
    "color chooser",
    "column header",
    "combo box",
    "date editor",
    "desktop icon",
    "desktop frame",
    "dial",
    "dialog",
    "directory pane",
    "drawing area",
    "file chooser",
    "filler",
    "focus traversable",
    "font chooser",
    "frame",
    "glass pane",
    "html container",
    "icon",
    "image",
    "internal frame",
    "label",
    "layered pane",
    "list",
    "list item",
    "menu",
    "menu bar",
    "menu item",
    "option pane",
    "page tab",
    "page tab list",
    "panel",
    "password text",
    "popup menu",
    "progress bar",
    "button",
    "radio button",
    "radio menu item",
    "root pane",
    "row header",
    "scroll bar",
    "scroll pane",
    "separator",
    "slider",
    "spin button",
    "split pane",
    "status bar",
    "table",
    "table cell",
    "table column header",
    "table row header",
    "tearoff menu item",
    "terminal",
    "text",
    "toggle button",
    "tool bar",
    "tool tip",
    "tree",
    "tree table",
    "unknown",
    "viewport",
    "window",
    "extended",
    "header",
    "footer",
    "paragraph",
    "ruler",
    "application",
    "autocomplete",
    "editbar",
    "embedded",
    "entry",
    "chart",
    "caption",
    "document frame",
    "heading",
    "page",
    "section",
    "redundant object",
    "form",
    "link",
    "input method window",
    "table row",
    "tree item",
    "document spreadsheet",
    "document presentation",
    "document text",
    "document web",
    "document email",
    "comment",
    "list box",
    "grouping",
    "image map",
    "notification",
    "info bar",
    "level bar",
    "title bar",
    "block quote",
    "audio",
    "video",
    "definition",
    "article",
    "landmark",
    "log",
    "marquee",
    "math",
    "rating",
    "timer",
    "static",
    "math fraction",
    "math root",
    "subscript",
    "superscript",
    "description list",
    "description term",
    "description value",
    "footnote",
    "content deletion",
    "content insertion",
    "mark",
    "suggestion",
    "push button menu",
    "switch",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_what_they_name() {
        for (connection, path, id) in [
            (":1.23", "/org/a11y/atspi/accessible/45", "23/45"),
            (":1.23", ROOT_PATH, "23/root"),
            (":1.4", "/org/gnome/Text/a11y/0a_1", "4//org/gnome/Text/a11y/0a_1"),
            (":2.7", "/org/a11y/atspi/accessible/1/2", ":2.7/1/2"),
        ] {
            let reference = Reference::new(connection, path);
            assert_eq!(reference.to_string(), id);
            assert_eq!(Reference::parse(id).unwrap(), reference, "{id}");
        }
        for wrong in ["", "23", "/45", "23/", "23/4 5", "23/a//b", "2 3/4", ":/1", ":7/1", "23/é", "a\0/1"] {
            Reference::parse(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn roles_and_states_have_the_names_of_their_numbers() {
        for (number, name) in
            [(0, "invalid"), (43, "button"), (69, "window"), (88, "link"), (95, "document web")]
        {
            assert_eq!(role_name(number), name);
            assert_eq!(role_number(name), Some(number));
        }
        assert_eq!((role_name(131), role_name(u32::MAX)), ("unknown", "unknown"));
        for (written, number) in
            [("CheckBox", 7), ("check-box", 7), ("push button", 43), ("PASSWORD_TEXT", 40)]
        {
            assert_eq!(role_number(written), Some(number), "{written}");
        }
        assert_eq!(role_number("no role"), None);
        let states = States::new(&[1 << 7 | 1 << 25, 1 << 11]);
        assert!(states.has(State::Editable) && states.has(State::Showing) && !states.has(State::Enabled));
        assert_eq!(states.names().collect::<Vec<_>>(), ["editable", "showing", "read-only"]);
        assert_eq!(States::new(&[u32::MAX; 3]).names().count(), STATES.len());
        assert_eq!(States::new(&[]), States(0));
    }
}

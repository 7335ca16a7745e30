//! What people write for keys, as X keysym names.

use roost_api::ApiError;

/// The keys of a combination such as `ctrl+shift+t`, in the order they are pressed; `field` is where it was written.
pub(super) fn chord(field: &str, text: &str) -> Result<Vec<String>, ApiError> {
    let mut keys = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(ApiError::field(
            field,
            "empty: name a key such as Return, or a combination such as ctrl+c",
        ));
    }
    // `+` separates, and is itself a key: `ctrl++`, `+`.
    while !rest.is_empty() {
        let end = rest.char_indices().skip(1).find(|(_, c)| *c == '+').map_or(rest.len(), |(at, _)| at);
        let name = rest[..end].trim();
        if name.is_empty() {
            return Err(ApiError::field(field, format!("{text:?} has an empty part")));
        }
        keys.push(keysym(name));
        rest = match rest[end..].strip_prefix('+') {
            Some("") => return Err(ApiError::field(field, format!("{text:?} ends with a separator"))),
            Some(next) => next,
            None => "",
        };
    }
    Ok(keys)
}

/// The keysym name for one key. Names it does not know are left as they are: X knows thousands.
fn keysym(name: &str) -> String {
    let known = match name.to_ascii_lowercase().as_str() {
        "ctrl" | "control" => "Control_L",
        "shift" => "Shift_L",
        "alt" | "option" => "Alt_L",
        "altgr" => "ISO_Level3_Shift",
        "cmd" | "command" | "super" | "win" | "windows" | "meta" => "Super_L",
        "enter" | "return" => "Return",
        "esc" | "escape" => "Escape",
        "backspace" => "BackSpace",
        "del" | "delete" => "Delete",
        "ins" | "insert" => "Insert",
        "tab" => "Tab",
        "space" | "spacebar" => "space",
        "up" | "arrowup" => "Up",
        "down" | "arrowdown" => "Down",
        "left" | "arrowleft" => "Left",
        "right" | "arrowright" => "Right",
        "home" => "Home",
        "end" => "End",
        "pageup" | "page_up" | "pgup" => "Page_Up",
        "pagedown" | "page_down" | "pgdn" => "Page_Down",
        "capslock" | "caps_lock" => "Caps_Lock",
        "printscreen" | "print" => "Print",
        "menu" | "contextmenu" => "Menu",
        function if is_function_key(function) => return function.to_ascii_uppercase(),
        _ => return name.to_owned(),
    };
    known.to_owned()
}

fn is_function_key(name: &str) -> bool {
    name.strip_prefix('f').and_then(|n| n.parse::<u8>().ok()).is_some_and(|n| (1..=35).contains(&n))
}

#[cfg(test)]
mod tests {
    use super::chord;

    #[test]
    fn combinations() {
        let cases: [(&str, &[&str]); 9] = [
            ("Enter", &["Return"]),
            ("ctrl+c", &["Control_L", "c"]),
            ("Ctrl + Shift + T", &["Control_L", "Shift_L", "T"]),
            ("cmd+space", &["Super_L", "space"]),
            ("+", &["+"]),
            ("ctrl++", &["Control_L", "+"]),
            ("alt+f4", &["Alt_L", "F4"]),
            ("XF86AudioMute", &["XF86AudioMute"]),
            ("é", &["é"]),
        ];
        for (text, keys) in cases {
            assert_eq!(chord("key", text).unwrap(), keys, "{text:?}");
        }
        for text in ["", " ", "ctrl+", "ctrl+ +c"] {
            assert!(chord("key", text).is_err(), "{text:?}");
        }
    }
}

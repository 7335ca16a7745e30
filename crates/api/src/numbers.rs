//! Numbers in queries, where one that is out of range means the nearest that is not.

use serde::{Deserialize, Deserializer, de};

/// A whole number of any length and sign, as the nearest that fits.
pub(crate) fn clamped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    nearest(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not a whole number")))
}

/// `None` is no number; nothing at all is no wish.
fn nearest(text: &str) -> Option<Option<u32>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let magnitude = digits.parse().unwrap_or(u32::MAX);
    Some(Some(if text.starts_with('-') { 0 } else { magnitude }))
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn what_is_out_of_range_is_the_nearest() {
        for (text, number) in [
            ("7", Some(7)),
            ("+7", Some(7)),
            ("0", Some(0)),
            ("-3", Some(0)),
            ("-99999999999999999999", Some(0)),
            ("4294967296", Some(u32::MAX)),
            ("99999999999999999999", Some(u32::MAX)),
            ("", None),
        ] {
            assert_eq!(nearest(text), Some(number), "{text:?}");
        }
        for text in ["x", "1.5", "-", "1e3", "0x1"] {
            assert_eq!(nearest(text), None, "{text:?}");
        }
    }
}

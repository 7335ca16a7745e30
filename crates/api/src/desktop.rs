//! Desktop control. Coordinates are pixels from the top left; those outside the screen are clamped to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::{IntoParams, ToSchema};

/// What a picture of the screen is sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// Without loss.
    #[default]
    Png,
    /// With loss; the smallest for photographs.
    Jpeg,
    /// Without loss, about a third of the size of PNG.
    Webp,
}

/// How a picture of the screen is made.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PictureQuery {
    /// `png` by default.
    #[serde(default)]
    pub format: Option<PictureFormat>,
    /// Of JPEG: 1 to 100, 80 by default.
    #[serde(default)]
    pub quality: Option<u8>,
    /// The picture's size in that of the screen: 0.1 to 1, which is the default.
    #[serde(default)]
    pub scale: Option<f64>,
    /// Whether the pointer is in the picture; it is not by default.
    #[serde(default)]
    pub cursor: Option<bool>,
}

/// A part of the screen. What lies outside is left out; nothing but outside is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ScreenRegion {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MouseButton {
    #[default]
    Left,
    Middle,
    Right,
}

/// Body of the routes that name a point.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct PointRequest {
    pub x: i32,
    pub y: i32,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ClickRequest {
    pub x: i32,
    pub y: i32,
    #[serde(default, deserialize_with = "null_is_default")]
    pub button: MouseButton,
}

/// Body of `mouse-down` and `mouse-up`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ButtonRequest {
    /// Where to; absent, with `y`, leaves the pointer where it is.
    #[serde(default)]
    pub x: Option<i32>,
    #[serde(default)]
    pub y: Option<i32>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub button: MouseButton,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct DragRequest {
    pub from_x: i32,
    pub from_y: i32,
    pub to_x: i32,
    pub to_y: i32,
    #[serde(default, deserialize_with = "null_is_default")]
    pub button: MouseButton,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScrollDirection {
    Up,
    Down,
    Left,
    Right,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ScrollRequest {
    pub direction: ScrollDirection,
    /// Clicks of the wheel, 3 by default, at most 100.
    #[serde(default)]
    pub clicks: Option<i32>,
    /// The same as `clicks`.
    #[serde(default)]
    pub amount: Option<i32>,
    /// Where to scroll; absent leaves the pointer where it is.
    #[serde(default)]
    pub x: Option<i32>,
    #[serde(default)]
    pub y: Option<i32>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct TypeRequest {
    pub text: String,
    /// Milliseconds between characters, at most 1000.
    #[serde(default)]
    pub delay: Option<u32>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct KeyRequest {
    /// A key or a combination: `Return`, `Enter`, `ctrl+c`, `alt+F4`.
    pub key: String,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct HotkeyRequest {
    /// Pressed in this order and released in the other: `["ctrl", "shift", "t"]`.
    pub keys: Vec<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct WaitRequest {
    /// 0 to 60; fractions are welcome.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// The same in milliseconds.
    #[serde(default)]
    pub ms: Option<u64>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct WallpaperRequest {
    /// The whole path of a picture in the computer, or an `https://` address from which the computer fetches it.
    pub path: String,
}

/// The clipboard's text: body of the route that sets it, answer of the one that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Clipboard {
    /// At most 512 KiB to set. Empty where there is no text.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DesktopEnvironment {
    /// Of the desktop (`XFCE`), or of its window manager where that belongs to none we know.
    pub name: String,
    /// `x11`.
    pub session_type: String,
    /// `{width}x{height}`
    pub resolution: String,
    pub width: u32,
    pub height: u32,
    /// Bits of a pixel.
    pub color_depth: u32,
    /// As in the environment variable `DISPLAY`.
    pub display: String,
}

/// The number of a window, written `0x2400003`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowId(pub u32);

impl fmt::Display for WindowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for WindowId {
    type Err = std::num::ParseIntError;

    /// Hexadecimal with `0x`, else decimal.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        match hexadecimal {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map(Self)
    }
}

impl Serialize for WindowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WindowId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A window of a program. Position and size are those of what is seen: with the frame, without a shadow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Window {
    #[schema(value_type = String, example = "0x2400003")]
    pub id: WindowId,
    pub title: String,
    /// The program, as it names itself to the window manager (its class).
    pub app: String,
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
    /// Whether keys go to it.
    pub focused: bool,
    /// The same as `focused`.
    pub is_focused: bool,
    pub minimized: bool,
    pub maximized: bool,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct WindowFocusRequest {
    /// The `id` of a window in the list.
    pub window_id: String,
}

/// A size in pixels, 1 to 32767 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WindowSize {
    pub width: u32,
    pub height: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Success {
    pub success: bool,
}

impl Success {
    pub const OK: Success = Success { success: true };
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CursorPosition {
    pub x: i32,
    pub y: i32,
}

/// In pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScreenSize {
    pub width: u32,
    pub height: u32,
}

impl ScreenSize {
    /// Of a new computer.
    pub const DEFAULT: Self = Self { width: 1280, height: 720 };
}

/// `1280x720`
impl std::fmt::Display for ScreenSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not the size of a screen, such as 1280x720")]
pub struct NotAScreenSize;

impl std::str::FromStr for ScreenSize {
    type Err = NotAScreenSize;

    fn from_str(text: &str) -> Result<Self, NotAScreenSize> {
        let (width, height) = text.split_once('x').ok_or(NotAScreenSize)?;
        let number = |text: &str| text.parse().map_err(|_| NotAScreenSize);
        Ok(Self { width: number(width)?, height: number(height)? })
    }
}

/// A screen of another size. Each side is 200 to 4096 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub struct SetScreenSize {
    #[schema(minimum = 200, maximum = 4096)]
    pub width: u32,
    #[schema(minimum = 200, maximum = 4096)]
    pub height: u32,
}

pub(crate) fn null_is_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_ids_are_written_as_x_tools_do() {
        assert_eq!(WindowId(0x240_0003).to_string(), "0x2400003");
        for (text, id) in [("0x2400003", 0x240_0003), ("0X10", 16), ("16", 16), ("0xffffffff", u32::MAX)] {
            assert_eq!(text.parse(), Ok(WindowId(id)), "{text}");
        }
        for text in ["", "0x", "x", "-1", "0x100000000", "0x-1", "1.0", " 1"] {
            text.parse::<WindowId>().expect_err(text);
        }
    }
}

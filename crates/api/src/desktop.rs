//! Desktop control. Coordinates are pixels from the top left; those outside the screen are clamped to it.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

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

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScreenSize {
    pub width: u32,
    pub height: u32,
}

fn null_is_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

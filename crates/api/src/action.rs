//! Several desktop actions in one request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::desktop::null_is_default;
use crate::{
    ButtonRequest, ClickRequest, DragRequest, HotkeyRequest, KeyRequest, PictureFormat, PointRequest,
    ScreenRegion, ScrollRequest, TypeRequest, WaitRequest,
};

/// Body of `POST /computers/{id}/desktop/actions`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ActionsRequest {
    /// 1 to 100, done in this order. All, but for the names of keys, are looked at before the first is done. If one fails, those before it have been
    /// done and those after it are not.
    pub actions: Vec<DesktopAction>,
    /// Asks for a picture after the last action.
    #[serde(default)]
    pub screenshot: Option<ActionsScreenshot>,
}

/// What can be done to a desktop, as a person would do it. `type` says which; the rest is as in the body of the route of
/// that name.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DesktopAction {
    Click(ClickRequest),
    DoubleClick(ClickRequest),
    /// Selects a line or a paragraph.
    TripleClick(ClickRequest),
    RightClick(PointRequest),
    Move(PointRequest),
    MouseDown(ButtonRequest),
    MouseUp(ButtonRequest),
    Drag(DragRequest),
    Scroll(ScrollRequest),
    Type(TypeRequest),
    Key(KeyRequest),
    Hotkey(HotkeyRequest),
    KeyDown(KeyRequest),
    KeyUp(KeyRequest),
    Wait(WaitRequest),
    /// Until something is drawn that was not there when the action before this one began.
    WaitForChange(WaitForChange),
    /// Until nothing has been drawn for a while.
    WaitUntilSettled(WaitUntilSettled),
}

/// A text cursor that blinks is no change. That the time is over is no error: the answer says so.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub struct WaitForChange {
    /// At most 60,000; 5,000 by default.
    #[serde(default)]
    pub timeout_ms: Option<u32>,
    /// Nothing else counts. The whole screen by default.
    #[serde(default)]
    pub region: Option<ScreenRegion>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub struct WaitUntilSettled {
    /// How long nothing is drawn; 500 by default.
    #[serde(default)]
    pub quiet_ms: Option<u32>,
    /// At most 60,000; 5,000 by default.
    #[serde(default)]
    pub timeout_ms: Option<u32>,
    /// Nothing else counts. The whole screen by default.
    #[serde(default)]
    pub region: Option<ScreenRegion>,
}

/// The picture after the actions. It is taken when the screen has settled.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub struct ActionsScreenshot {
    #[serde(default, deserialize_with = "null_is_default")]
    pub format: PictureFormat,
    /// Of JPEG: 1 to 100, 80 by default.
    #[serde(default)]
    pub quality: Option<u8>,
    /// The picture's size in that of the screen: 0.1 to 1, which is the default.
    #[serde(default)]
    pub scale: Option<f64>,
    /// Whether the pointer is in the picture; it is not by default.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cursor: bool,
    /// A part of the screen. All of it by default.
    #[serde(default)]
    pub region: Option<ScreenRegion>,
    /// How long nothing is drawn before the picture is taken; 500 by default, 0 does not wait.
    #[serde(default)]
    pub quiet_ms: Option<u32>,
    /// When it is taken in any case: at most 60,000; 5,000 by default.
    #[serde(default)]
    pub timeout_ms: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActionsAnswer {
    pub success: bool,
    /// One for each wait for the screen.
    pub waits: Vec<ActionWait>,
    pub screenshot: Option<ActionsPicture>,
}

/// How a wait for the screen ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActionWait {
    /// Which action it was, from 0 on.
    pub action: usize,
    /// False: the time was over first.
    pub reached: bool,
    /// How long it took.
    pub waited_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActionsPicture {
    /// `image/png`, `image/jpeg` or `image/webp`.
    pub media_type: String,
    /// In base64.
    pub data: String,
    /// Whether the screen had settled. Null where nobody waited for it.
    pub settled: Option<bool>,
}

/// How the tool is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolFormat {
    /// The Messages API of Anthropic: `input_schema`.
    #[default]
    Anthropic,
    /// Function calling as OpenAI has it: `function.parameters`.
    Openai,
    /// The Model Context Protocol: `inputSchema`.
    Mcp,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ToolsQuery {
    /// `anthropic` by default.
    #[serde(default)]
    pub format: Option<ToolFormat>,
}

/// Tools for a model that drives the desktop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tools {
    /// What the model gives as the input of the tool is the body of `POST /computers/{id}/desktop/actions`.
    pub tools: Vec<serde_json::Value>,
}

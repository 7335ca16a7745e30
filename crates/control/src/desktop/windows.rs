//! The windows of programs.

use roost_api::{
    ApiError, ComputerId, CursorPosition, ErrorCode, PointRequest, ScreenSize, Window, WindowId, WindowSize,
};
use roost_guest_proto::v1 as proto;
use roost_guest_proto::v1::change_window_request::Change;
use roost_guest_proto::v1::{ChangeWindowRequest, WindowState, WindowsRequest};

use crate::{Control, Failure};

/// What can be asked of a window.
#[derive(Debug, Clone)]
pub enum WindowChange {
    Focus,
    Maximize,
    Minimize,
    Close,
    Move(PointRequest),
    Resize(WindowSize),
}

impl Control {
    /// The topmost first.
    pub async fn windows(&self, id: ComputerId) -> Result<Vec<Window>, Failure> {
        let mut client = self.desktop(id).await?;
        let answer = client.windows(WindowsRequest {}).await.map_err(Failure::from_guest)?.into_inner();
        Ok(answer.windows.into_iter().map(window).collect())
    }

    /// Answers when the window manager has done it.
    pub async fn change_window(
        &self,
        id: ComputerId,
        window: &str,
        change: WindowChange,
    ) -> Result<(), Failure> {
        let WindowId(window) = window_id(window)?;
        let change = match change {
            WindowChange::Focus => Change::State(WindowState::Focused.into()),
            WindowChange::Maximize => Change::State(WindowState::Maximized.into()),
            WindowChange::Minimize => Change::State(WindowState::Minimized.into()),
            WindowChange::Close => Change::State(WindowState::Closed.into()),
            WindowChange::Move(to) => Change::Position(proto::Point { x: to.x, y: to.y }),
            WindowChange::Resize(to) => Change::Size(proto::Size { width: to.width, height: to.height }),
        };
        let request = ChangeWindowRequest { id: window, change: Some(change) };
        let mut client = self.desktop(id).await?;
        match client.change_window(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => {
                Err(ApiError::new(ErrorCode::NotFound, status.message()).into())
            }
            Err(status) => Err(Failure::from_guest(status)),
        }
    }

    pub async fn window_size(&self, id: ComputerId, window: &str) -> Result<ScreenSize, Failure> {
        let window = self.one_window(id, window).await?;
        Ok(ScreenSize { width: window.width, height: window.height })
    }

    pub async fn window_position(&self, id: ComputerId, window: &str) -> Result<CursorPosition, Failure> {
        let window = self.one_window(id, window).await?;
        Ok(CursorPosition { x: window.x, y: window.y })
    }

    async fn one_window(&self, id: ComputerId, window: &str) -> Result<Window, Failure> {
        let wanted = window_id(window)?;
        let found = self.windows(id).await?.into_iter().find(|window| window.id == wanted);
        found.ok_or_else(|| unknown(window).into())
    }
}

fn window(window: proto::Window) -> Window {
    Window {
        id: WindowId(window.id),
        title: window.title,
        app: window.app,
        x: window.x,
        y: window.y,
        width: window.width,
        height: window.height,
        focused: window.focused,
        is_focused: window.focused,
        minimized: window.minimized,
        maximized: window.maximized,
    }
}

fn window_id(text: &str) -> Result<WindowId, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

fn unknown(window: &str) -> ApiError {
    let message = format!("there is no window {window:?}; list the windows to see which there are");
    ApiError::new(ErrorCode::NotFound, message)
}

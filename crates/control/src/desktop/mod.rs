//! Eyes and hands: pictures of the screen, pointer, keyboard, windows, clipboard, and what programs say of what they show.

mod accessibility;
mod actions;
mod keysyms;
mod picture;
mod tools;
mod windows;

pub(crate) use self::accessibility::Buses;
pub use self::picture::Picture;
pub use self::windows::WindowChange;

use std::time::Duration;

use roost_api::{
    ApiError, Clipboard, ComputerId, CursorPosition, DesktopEnvironment, ScreenSize, SetScreenSize,
    WallpaperRequest,
};
use roost_guest_proto::v1::desktop_client::DesktopClient;
use roost_guest_proto::v1::{
    CursorRequest, ReadClipboardRequest, ScreenReply, ScreenRequest, SetScreenSizeRequest,
    WriteClipboardRequest,
};
use roost_store::ComputerChange;

use crate::exec::ExecCommand;
use crate::guest::Guest;
use crate::{Control, Failure};

/// With its escapes it fits the body of a request.
const LONGEST_CLIPBOARD: usize = 512 * 1024;
/// Of the script, with a picture that has to be fetched.
const WALLPAPER_TIMEOUT: Duration = Duration::from_secs(90);
const SCREEN_SIDE: std::ops::RangeInclusive<u32> = 200..=4096;
const WALLPAPER: &str = include_str!("wallpaper.sh");

impl Control {
    async fn desktop(&self, id: ComputerId) -> Result<DesktopClient<Guest>, Failure> {
        Ok(DesktopClient::new(self.guest(id).await?))
    }

    async fn screen(&self, id: ComputerId) -> Result<ScreenReply, Failure> {
        let mut client = self.desktop(id).await?;
        Ok(client.screen(ScreenRequest {}).await.map_err(Failure::from_guest)?.into_inner())
    }

    pub async fn screen_size(&self, id: ComputerId) -> Result<ScreenSize, Failure> {
        let screen = self.screen(id).await?;
        Ok(ScreenSize { width: screen.width, height: screen.height })
    }

    /// Now, and after each start. What the computer is copied to has it too.
    pub async fn set_screen_size(
        &self,
        id: ComputerId,
        request: SetScreenSize,
    ) -> Result<ScreenSize, Failure> {
        let SetScreenSize { width, height } = request;
        for (field, pixels) in [("width", width), ("height", height)] {
            if !SCREEN_SIDE.contains(&pixels) {
                let (least, most) = SCREEN_SIDE.into_inner();
                return Err(ApiError::field(
                    field,
                    format!("must be {least} to {most} pixels, not {pixels}"),
                )
                .into());
            }
        }
        let mut client = self.desktop(id).await?;
        let request = SetScreenSizeRequest { width, height };
        client.set_screen_size(request).await.map_err(Failure::from_guest)?;
        // Asked, because somebody else may have changed it at the same time.
        let size = self.screen_size(id).await?;
        let change = ComputerChange { screen: Some(size), ..ComputerChange::default() };
        self.inner.store.change_computer(id, &change).await?.ok_or_else(Failure::computer_not_found)?;
        Ok(size)
    }

    pub async fn desktop_environment(&self, id: ComputerId) -> Result<DesktopEnvironment, Failure> {
        let screen = self.screen(id).await?;
        let name = match screen.window_manager.as_str() {
            "Xfwm4" => "XFCE".to_owned(),
            "" => "none".to_owned(),
            _ => screen.window_manager,
        };
        Ok(DesktopEnvironment {
            name,
            session_type: "x11".to_owned(),
            resolution: format!("{}x{}", screen.width, screen.height),
            width: screen.width,
            height: screen.height,
            color_depth: screen.depth,
            display: screen.display,
        })
    }

    pub async fn cursor(&self, id: ComputerId) -> Result<CursorPosition, Failure> {
        let mut client = self.desktop(id).await?;
        let cursor = client.cursor(CursorRequest {}).await.map_err(Failure::from_guest)?.into_inner();
        Ok(CursorPosition { x: cursor.x, y: cursor.y })
    }

    pub async fn clipboard(&self, id: ComputerId) -> Result<Clipboard, Failure> {
        let mut client = self.desktop(id).await?;
        let answer = client.read_clipboard(ReadClipboardRequest {}).await.map_err(Failure::from_guest)?;
        Ok(Clipboard { text: answer.into_inner().text })
    }

    pub async fn set_clipboard(&self, id: ComputerId, clipboard: Clipboard) -> Result<(), Failure> {
        if clipboard.text.len() > LONGEST_CLIPBOARD {
            let message = format!("longer than {LONGEST_CLIPBOARD} bytes; put it into a file instead");
            return Err(ApiError::field("text", message).into());
        }
        let request = WriteClipboardRequest { text: clipboard.text };
        self.desktop(id).await?.write_clipboard(request).await.map_err(Failure::from_guest)?;
        Ok(())
    }

    /// Shows a picture behind the windows. The computer fetches it, so that nobody reaches through this what only the
    /// host reaches.
    pub async fn wallpaper(&self, id: ComputerId, request: WallpaperRequest) -> Result<(), Failure> {
        if !request.path.starts_with('/') && !request.path.starts_with("https://") {
            let message = "neither a whole path in the computer nor an https:// address";
            return Err(ApiError::field("path", message).into());
        }
        let argv = ["/bin/bash", "-lc", WALLPAPER, "wallpaper", &request.path].map(str::to_owned);
        let command =
            ExecCommand { argv: argv.to_vec(), timeout: Some(WALLPAPER_TIMEOUT), ..ExecCommand::default() };
        let result = self.exec_to_end(id, command, None).await?;
        if !result.success {
            let why = match result.stderr.trim() {
                "" => format!("could not be shown (exit code {})", result.exit_code),
                why => why.to_owned(),
            };
            return Err(ApiError::field("path", why).into());
        }
        Ok(())
    }
}

//! Eyes and hands: pictures of the screen, pointer, keyboard, windows, clipboard.

mod keysyms;
mod picture;
mod windows;

pub use self::picture::Picture;
pub use self::windows::WindowChange;

use std::time::Duration;

use roost_api::{
    ApiError, ButtonRequest, ClickRequest, Clipboard, ComputerId, CursorPosition, DesktopEnvironment,
    DragRequest, HotkeyRequest, KeyRequest, MouseButton, PointRequest, ScreenSize, ScrollDirection,
    ScrollRequest, TypeRequest, WaitRequest, WallpaperRequest,
};
use roost_guest_proto::v1::desktop_client::DesktopClient;
use roost_guest_proto::v1::input_action::Action;
use roost_guest_proto::v1::{
    Button, CursorRequest, InputAction, InputRequest, KeyChord, Point, ReadClipboardRequest, ScreenReply,
    ScreenRequest, Scroll, TypeSlowly, WriteClipboardRequest,
};

use crate::exec::ExecCommand;
use crate::guest::Guest;
use crate::{Control, Failure};

const LONGEST_TEXT: usize = 64 * 1024;
/// With its escapes it fits the body of a request.
const LONGEST_CLIPBOARD: usize = 512 * 1024;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A drag moves the pointer about this far at a time, in at most so many steps, each with a pause for the program
/// under it: toolkits take one jump for no drag.
const DRAG_STEP: u32 = 16;
const DRAG_STEPS: std::ops::RangeInclusive<u32> = 4..=64;
const DRAG_PAUSE_MS: u32 = 8;
/// Of the script, with a picture that has to be fetched.
const WALLPAPER_TIMEOUT: Duration = Duration::from_secs(90);
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

    pub async fn move_pointer(&self, id: ComputerId, to: PointRequest) -> Result<(), Failure> {
        self.input(id, vec![Action::Move(Point { x: to.x, y: to.y })]).await
    }

    /// Presses and releases a button `times` times at a point.
    pub async fn click(&self, id: ComputerId, request: ClickRequest, times: usize) -> Result<(), Failure> {
        let button = button(request.button);
        let mut actions = vec![Action::Move(Point { x: request.x, y: request.y })];
        for _ in 0..times {
            actions.push(Action::Press(button.into()));
            actions.push(Action::Release(button.into()));
        }
        self.input(id, actions).await
    }

    /// Presses a button and leaves it so.
    pub async fn mouse_down(&self, id: ComputerId, request: ButtonRequest) -> Result<(), Failure> {
        let mut actions = move_to(request.x, request.y)?;
        actions.push(Action::Press(button(request.button).into()));
        self.input(id, actions).await
    }

    pub async fn mouse_up(&self, id: ComputerId, request: ButtonRequest) -> Result<(), Failure> {
        let mut actions = move_to(request.x, request.y)?;
        actions.push(Action::Release(button(request.button).into()));
        self.input(id, actions).await
    }

    pub async fn drag(&self, id: ComputerId, request: DragRequest) -> Result<(), Failure> {
        let button = button(request.button);
        let mut path = drag_path(&request).into_iter();
        let mut actions = Vec::new();
        if let Some(start) = path.next() {
            actions.extend([Action::Move(start), Action::Press(button.into())]);
        }
        for point in path {
            actions.extend([Action::PauseMs(DRAG_PAUSE_MS), Action::Move(point)]);
        }
        actions.extend([Action::PauseMs(DRAG_PAUSE_MS), Action::Release(button.into())]);
        self.input(id, actions).await
    }

    pub async fn scroll(&self, id: ComputerId, request: ScrollRequest) -> Result<(), Failure> {
        let clicks = request.clicks.or(request.amount).unwrap_or(3);
        if !(0..=100).contains(&clicks) {
            return Err(ApiError::field("clicks", "not between 0 and 100").into());
        }
        let (dx, dy) = match request.direction {
            ScrollDirection::Up => (0, -clicks),
            ScrollDirection::Down => (0, clicks),
            ScrollDirection::Left => (-clicks, 0),
            ScrollDirection::Right => (clicks, 0),
        };
        let mut actions = move_to(request.x, request.y)?;
        actions.push(Action::Scroll(Scroll { dx, dy }));
        self.input(id, actions).await
    }

    pub async fn type_text(&self, id: ComputerId, request: TypeRequest) -> Result<(), Failure> {
        if request.text.len() > LONGEST_TEXT {
            return Err(ApiError::field(
                "text",
                format!("longer than {LONGEST_TEXT} bytes; type it in parts"),
            )
            .into());
        }
        let action = match request.delay.unwrap_or(0) {
            0 => Action::TypeText(request.text),
            delay_ms if delay_ms > 1000 => return Err(ApiError::field("delay", "longer than 1000 ms").into()),
            delay_ms => Action::TypeSlowly(TypeSlowly { text: request.text, delay_ms }),
        };
        self.input(id, vec![action]).await
    }

    pub async fn press_key(&self, id: ComputerId, request: KeyRequest) -> Result<(), Failure> {
        let keysyms = keysyms::chord("key", &request.key)?;
        self.input(id, vec![Action::Key(KeyChord { keysyms })]).await
    }

    /// Keys that are pressed together.
    pub async fn hotkey(&self, id: ComputerId, request: HotkeyRequest) -> Result<(), Failure> {
        let mut keysyms = Vec::with_capacity(request.keys.len());
        for key in &request.keys {
            keysyms.extend(keysyms::chord("keys", key)?);
        }
        if keysyms.is_empty() {
            let message = "empty: name the keys that are pressed together, such as [\"ctrl\", \"c\"]";
            return Err(ApiError::field("keys", message).into());
        }
        self.input(id, vec![Action::Key(KeyChord { keysyms })]).await
    }

    /// Presses a key and leaves it so.
    pub async fn key_down(&self, id: ComputerId, request: KeyRequest) -> Result<(), Failure> {
        let keysyms = keysyms::chord("key", &request.key)?;
        self.input(id, vec![Action::HoldKeys(KeyChord { keysyms })]).await
    }

    pub async fn key_up(&self, id: ComputerId, request: KeyRequest) -> Result<(), Failure> {
        let keysyms = keysyms::chord("key", &request.key)?;
        self.input(id, vec![Action::ReleaseKeys(KeyChord { keysyms })]).await
    }

    /// Answers later: for programs that can do nothing but call routes.
    pub async fn wait(&self, request: WaitRequest) -> Result<(), Failure> {
        let time = wait_time(&request)?;
        tokio::time::sleep(time).await;
        Ok(())
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

    async fn input(&self, id: ComputerId, actions: Vec<Action>) -> Result<(), Failure> {
        let actions = actions.into_iter().map(|action| InputAction { action: Some(action) }).collect();
        let mut client = self.desktop(id).await?;
        client.input(InputRequest { actions }).await.map_err(Failure::from_guest)?;
        Ok(())
    }
}

fn button(button: MouseButton) -> Button {
    match button {
        MouseButton::Left => Button::Left,
        MouseButton::Middle => Button::Middle,
        MouseButton::Right => Button::Right,
    }
}

/// A move to a point that may be left out.
fn move_to(x: Option<i32>, y: Option<i32>) -> Result<Vec<Action>, ApiError> {
    match (x, y) {
        (Some(x), Some(y)) => Ok(vec![Action::Move(Point { x, y })]),
        (None, None) => Ok(Vec::new()),
        (Some(_), None) => Err(ApiError::field("y", "missing beside x")),
        (None, Some(_)) => Err(ApiError::field("x", "missing beside y")),
    }
}

/// From the first point to the last one.
fn drag_path(drag: &DragRequest) -> Vec<Point> {
    let far = drag.from_x.abs_diff(drag.to_x).max(drag.from_y.abs_diff(drag.to_y));
    let steps = (far / DRAG_STEP).clamp(*DRAG_STEPS.start(), *DRAG_STEPS.end());
    let between = |from: i32, to: i32, step: u32| {
        let (from, to) = (i64::from(from), i64::from(to));
        let at = from + (to - from) * i64::from(step) / i64::from(steps);
        i32::try_from(at).expect("between two that fit")
    };
    (0..=steps)
        .map(|step| Point {
            x: between(drag.from_x, drag.to_x, step),
            y: between(drag.from_y, drag.to_y, step),
        })
        .collect()
}

fn wait_time(request: &WaitRequest) -> Result<Duration, ApiError> {
    let (field, time) = match (request.seconds, request.ms) {
        (Some(seconds), _) => ("seconds", Duration::try_from_secs_f64(seconds).ok()),
        (None, Some(ms)) => ("ms", Some(Duration::from_millis(ms))),
        (None, None) => return Err(ApiError::field("seconds", "missing: how long to wait")),
    };
    time.filter(|time| *time <= LONGEST_WAIT)
        .ok_or_else(|| ApiError::field(field, "not between 0 and 60 seconds; wait several times"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drag(from: (i32, i32), to: (i32, i32)) -> Vec<(i32, i32)> {
        let request =
            DragRequest { from_x: from.0, from_y: from.1, to_x: to.0, to_y: to.1, button: MouseButton::Left };
        drag_path(&request).into_iter().map(|point| (point.x, point.y)).collect()
    }

    #[test]
    fn a_drag_goes_in_steps_from_the_first_point_to_the_last() {
        assert_eq!(drag((0, 0), (8, 4)), [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]);
        assert_eq!(drag((5, 5), (5, 5)), [(5, 5); 5]);
        let long = drag((10, 700), (1200, 20));
        assert_eq!((long[0], long[long.len() - 1], long.len()), ((10, 700), (1200, 20), 65));
        let whole = drag((i32::MIN, i32::MAX), (i32::MAX, i32::MIN));
        assert_eq!(whole[whole.len() - 1], (i32::MAX, i32::MIN));
    }

    #[test]
    fn waits_are_up_to_a_minute() {
        let wait = |seconds, ms| wait_time(&WaitRequest { seconds, ms });
        assert_eq!(wait(Some(0.25), None).unwrap(), Duration::from_millis(250));
        assert_eq!(wait(None, Some(60_000)).unwrap(), LONGEST_WAIT);
        for (seconds, ms) in [
            (None, None),
            (Some(-1.0), None),
            (Some(f64::NAN), None),
            (Some(60.5), None),
            (None, Some(60_001)),
        ] {
            wait(seconds, ms).unwrap_err();
        }
    }
}

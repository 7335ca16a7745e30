//! Eyes and hands: screenshots, pointer, keyboard.

use bytes::Bytes;
use roost_api::{
    ApiError, ClickRequest, ComputerId, CursorPosition, ErrorCode, KeyRequest, MouseButton, PointRequest,
    ScreenSize, ScrollDirection, ScrollRequest, TypeRequest,
};
use roost_guest_proto::v1::desktop_client::DesktopClient;
use roost_guest_proto::v1::input_action::Action;
use roost_guest_proto::v1::{
    Button, CaptureRequest, CursorRequest, InputAction, InputRequest, KeyChord, Point, Region, ScreenRequest,
    Scroll, TypeSlowly,
};

use crate::guest::Guest;
use crate::{Control, Failure, keysyms};

/// The largest picture a guest may send: 8K in RGB. The guest is not trusted to be reasonable.
const MOST_PIXELS: usize = 7680 * 4320;
const LONGEST_TEXT: usize = 64 * 1024;

impl Control {
    async fn desktop(&self, id: ComputerId) -> Result<DesktopClient<Guest>, Failure> {
        Ok(DesktopClient::new(self.guest(id).await?))
    }

    /// The screen as PNG. The guest sends pixels; they are compressed here, where the CPU is not emulated.
    pub async fn screenshot(&self, id: ComputerId) -> Result<Bytes, Failure> {
        let mut client = self.desktop(id).await?;
        let request = CaptureRequest { region: None::<Region> };
        let mut stream = client.capture(request).await.map_err(Failure::from_guest)?.into_inner();
        let (mut width, mut height, mut pixels, mut expected) = (0, 0, Vec::new(), None);
        while let Some(piece) = stream.message().await.map_err(Failure::from_guest)? {
            if expected.is_none() {
                (width, height) = (piece.width, piece.height);
                let count = usize::try_from(u64::from(width) * u64::from(height)).unwrap_or(usize::MAX);
                if count == 0 || count > MOST_PIXELS {
                    return Err(broken_picture(format!("a screen of {width}x{height}")));
                }
                pixels.reserve_exact(count * 3);
                expected = Some(count * 3);
            }
            pixels.extend_from_slice(&piece.rgb);
            if expected.is_some_and(|expected| pixels.len() > expected) {
                return Err(broken_picture("more pixels than the screen has".to_owned()));
            }
        }
        if expected != Some(pixels.len()) {
            return Err(broken_picture(format!("{} bytes for {width}x{height}", pixels.len())));
        }
        let encoded = tokio::task::spawn_blocking(move || encode(width, height, &pixels)).await;
        Ok(encoded.map_err(Failure::internal)?.map_err(Failure::internal)?.into())
    }

    pub async fn screen_size(&self, id: ComputerId) -> Result<ScreenSize, Failure> {
        let mut client = self.desktop(id).await?;
        let screen = client.screen(ScreenRequest {}).await.map_err(Failure::from_guest)?.into_inner();
        Ok(ScreenSize { width: screen.width, height: screen.height })
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
        let button = match request.button {
            MouseButton::Left => Button::Left,
            MouseButton::Middle => Button::Middle,
            MouseButton::Right => Button::Right,
        };
        let mut actions = vec![Action::Move(Point { x: request.x, y: request.y })];
        for _ in 0..times {
            actions.push(Action::Press(button.into()));
            actions.push(Action::Release(button.into()));
        }
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
        let mut actions = Vec::new();
        match (request.x, request.y) {
            (Some(x), Some(y)) => actions.push(Action::Move(Point { x, y })),
            (None, None) => {}
            (Some(_), None) => return Err(ApiError::field("y", "missing beside x").into()),
            (None, Some(_)) => return Err(ApiError::field("x", "missing beside y").into()),
        }
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
        let keysyms = keysyms::chord(&request.key)?;
        self.input(id, vec![Action::Key(KeyChord { keysyms })]).await
    }

    async fn input(&self, id: ComputerId, actions: Vec<Action>) -> Result<(), Failure> {
        let actions = actions.into_iter().map(|action| InputAction { action: Some(action) }).collect();
        let mut client = self.desktop(id).await?;
        client.input(InputRequest { actions }).await.map_err(Failure::from_guest)?;
        Ok(())
    }
}

fn encode(width: u32, height: u32, rgb: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::with_capacity(rgb.len() / 4);
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(out)
}

fn broken_picture(what: String) -> Failure {
    Failure::new(
        ErrorCode::AgentUnavailable,
        format!("the computer sent a broken picture: {what}; try again"),
    )
}

//! What is done to a desktop: one action, or several in one request with waits between them and a picture at the end.
//!
//! Everything is looked at before anything is done. What lies between two waits goes to the computer in one call.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_api::{
    ActionWait, ActionsAnswer, ActionsPicture, ActionsRequest, ActionsScreenshot, ApiError, ClickRequest,
    ComputerId, DesktopAction, DragRequest, ErrorCode, HotkeyRequest, MouseButton, PictureQuery,
    ScreenRegion, ScrollDirection, ScrollRequest, TypeRequest, WaitForChange, WaitRequest, WaitUntilSettled,
};
use roost_guest_proto::v1::input_action::Action;
use roost_guest_proto::v1::{
    Button, InputAction, InputRequest, KeyChord, Point, Region, ScreenEvent, Scroll, TypeSlowly,
    WatchScreenReply, WatchScreenRequest,
};

use super::keysyms;
use crate::{Control, Failure};

const LONGEST_TEXT: usize = 64 * 1024;
/// A drag moves the pointer about this far at a time, in at most so many steps, each with a pause for the program
/// under it: toolkits take one jump for no drag.
const DRAG_STEP: u32 = 16;
const DRAG_STEPS: std::ops::RangeInclusive<u32> = 4..=64;
const DRAG_PAUSE_MS: u32 = 8;

const MOST_ACTIONS: usize = 100;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of all waits of a request together.
const LONGEST_WAITS: Duration = Duration::from_secs(120);
const QUIET_MS: u32 = 500;
const SCREEN_TIMEOUT_MS: u32 = 5000;
/// How much longer the computer's word that the time is over may take on a busy host.
const GRACE: Duration = Duration::from_secs(30);

/// An action that makes sense.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Input(Vec<Action>),
    Sleep(Duration),
    Watch(WatchScreenRequest),
}

impl Step {
    /// How long it may take at most.
    fn wait(&self) -> Duration {
        match self {
            Step::Input(_) => Duration::ZERO,
            Step::Sleep(time) => *time,
            Step::Watch(watch) => Duration::from_millis(watch.timeout_ms.into()),
        }
    }
}

impl Control {
    /// Returns when the computer has done it.
    pub async fn act(&self, id: ComputerId, action: DesktopAction) -> Result<(), Failure> {
        match step(action)? {
            Step::Input(actions) => self.input(id, actions).await,
            Step::Sleep(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Step::Watch(watch) => {
                self.watch(id, watch).await?.end().await?;
                Ok(())
            }
        }
    }

    pub async fn actions(&self, id: ComputerId, request: ActionsRequest) -> Result<ActionsAnswer, Failure> {
        let steps = steps(request.actions)?;
        let picture = request.screenshot.map(picture_after).transpose()?;
        let settling = picture.as_ref().and_then(|picture| picture.settle).map(Step::Watch);
        let waits: Duration = steps.iter().chain(&settling).map(Step::wait).sum();
        if waits > LONGEST_WAITS {
            let message = format!(
                "wait up to {} s together; at most {} s fit into one request: send several",
                waits.as_secs(),
                LONGEST_WAITS.as_secs()
            );
            return Err(ApiError::field("actions", message).into());
        }
        let mut answer = ActionsAnswer { success: true, waits: Vec::new(), screenshot: None };
        let mut steps = steps.into_iter().enumerate().peekable();
        let mut input = Vec::new();
        while let Some((index, step)) = steps.next() {
            let next = steps.peek().map(|(_, step)| step);
            match step {
                Step::Input(actions) => {
                    input.extend(actions);
                    // A change may come before the answer to what brings it about.
                    if !matches!(next, Some(Step::Input(_))) && !next.is_some_and(is_for_change) {
                        self.input(id, std::mem::take(&mut input))
                            .await
                            .map_err(|failure| at(index, failure))?;
                    }
                }
                Step::Sleep(time) => tokio::time::sleep(time).await,
                Step::Watch(watch) => {
                    let watch = self.watch(id, watch).await?;
                    self.input(id, std::mem::take(&mut input))
                        .await
                        .map_err(|failure| at(index - 1, failure))?;
                    let (reached, waited) = watch.end().await?;
                    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                    answer.waits.push(ActionWait { action: index, reached, waited_ms });
                }
            }
        }
        if let Some(After { settle, region, query }) = picture {
            let settled = match settle {
                Some(watch) => Some(self.watch(id, watch).await?.end().await?.0),
                None => None,
            };
            let picture = self.screenshot(id, region, query).await?;
            answer.screenshot = Some(ActionsPicture {
                media_type: picture.media_type.to_owned(),
                data: STANDARD.encode(&picture.bytes),
                settled,
            });
        }
        Ok(answer)
    }

    async fn input(&self, id: ComputerId, actions: Vec<Action>) -> Result<(), Failure> {
        if actions.is_empty() {
            return Ok(());
        }
        let actions = actions.into_iter().map(|action| InputAction { action: Some(action) }).collect();
        let mut client = self.desktop(id).await?;
        client.input(InputRequest { actions }).await.map_err(Failure::from_guest)?;
        Ok(())
    }

    /// Returns when the computer watches.
    async fn watch(&self, id: ComputerId, request: WatchScreenRequest) -> Result<Watching, Failure> {
        let patience = Duration::from_millis(request.timeout_ms.into()) + GRACE;
        let mut client = self.desktop(id).await?;
        let replies = client.watch_screen(request).await.map_err(Failure::from_guest)?.into_inner();
        let mut watching = Watching { replies, patience, begun: Instant::now() };
        watching.next().await?;
        Ok(watching)
    }
}

/// A screen that is being watched.
#[derive(Debug)]
struct Watching {
    replies: tonic::Streaming<WatchScreenReply>,
    patience: Duration,
    begun: Instant,
}

impl Watching {
    async fn next(&mut self) -> Result<WatchScreenReply, Failure> {
        let silent = || {
            Failure::new(ErrorCode::AgentUnavailable, "the computer did not say what became of its screen")
        };
        let next = tokio::time::timeout(self.patience, self.replies.message()).await;
        next.map_err(|_| silent())?.map_err(Failure::from_guest)?.ok_or_else(silent)
    }

    /// Whether it came to what was waited for, and how long that took.
    async fn end(mut self) -> Result<(bool, Duration), Failure> {
        let reached = self.next().await?.reached;
        Ok((reached, self.begun.elapsed()))
    }
}

fn is_for_change(step: &Step) -> bool {
    matches!(step, Step::Watch(watch) if watch.until() == ScreenEvent::Changed)
}

fn steps(actions: Vec<DesktopAction>) -> Result<Vec<Step>, ApiError> {
    if actions.is_empty() || actions.len() > MOST_ACTIONS {
        return Err(ApiError::field("actions", format!("not between 1 and {MOST_ACTIONS} actions")));
    }
    let one = |(index, action)| step(action).map_err(|error| within(index, error));
    actions.into_iter().enumerate().map(one).collect()
}

/// The same error, of an action in a list.
fn within(index: usize, mut error: ApiError) -> ApiError {
    error.message = format!("actions[{index}].{}", error.message);
    let fields = std::mem::take(&mut error.fields);
    error.fields =
        fields.into_iter().map(|(field, problems)| (format!("actions[{index}].{field}"), problems)).collect();
    error
}

/// What the computer refused to do of the actions up to this one.
fn at(index: usize, failure: Failure) -> Failure {
    match failure.public.code {
        ErrorCode::ValidationFailed => {
            ApiError::field("actions", format!("up to actions[{index}]: {}", failure.public.message)).into()
        }
        _ => failure,
    }
}

fn step(action: DesktopAction) -> Result<Step, ApiError> {
    let input = match action {
        DesktopAction::Click(click) => clicks(&click, 1),
        DesktopAction::DoubleClick(click) => clicks(&click, 2),
        DesktopAction::TripleClick(click) => clicks(&click, 3),
        DesktopAction::RightClick(point) => {
            clicks(&ClickRequest { x: point.x, y: point.y, button: MouseButton::Right }, 1)
        }
        DesktopAction::Move(to) => vec![Action::Move(Point { x: to.x, y: to.y })],
        DesktopAction::MouseDown(request) => {
            let mut actions = move_to(request.x, request.y)?;
            actions.push(Action::Press(button(request.button).into()));
            actions
        }
        DesktopAction::MouseUp(request) => {
            let mut actions = move_to(request.x, request.y)?;
            actions.push(Action::Release(button(request.button).into()));
            actions
        }
        DesktopAction::Drag(request) => drag(&request),
        DesktopAction::Scroll(request) => scroll(&request)?,
        DesktopAction::Type(request) => vec![typed(request)?],
        DesktopAction::Key(request) => vec![Action::Key(chord("key", &request.key)?)],
        DesktopAction::Hotkey(request) => vec![Action::Key(hotkey(&request)?)],
        DesktopAction::KeyDown(request) => vec![Action::HoldKeys(chord("key", &request.key)?)],
        DesktopAction::KeyUp(request) => vec![Action::ReleaseKeys(chord("key", &request.key)?)],
        DesktopAction::Wait(request) => return Ok(Step::Sleep(wait_time(&request)?)),
        DesktopAction::WaitForChange(WaitForChange { timeout_ms, region }) => {
            return watch(ScreenEvent::Changed, 0, timeout_ms, region).map(Step::Watch);
        }
        DesktopAction::WaitUntilSettled(WaitUntilSettled { quiet_ms, timeout_ms, region }) => {
            let quiet_ms = quiet_ms.unwrap_or(QUIET_MS);
            return watch(ScreenEvent::Settled, quiet_ms, timeout_ms, region).map(Step::Watch);
        }
    };
    Ok(Step::Input(input))
}

/// Presses and releases a button `times` times at a point.
fn clicks(request: &ClickRequest, times: usize) -> Vec<Action> {
    let button = button(request.button);
    let mut actions = vec![Action::Move(Point { x: request.x, y: request.y })];
    for _ in 0..times {
        actions.push(Action::Press(button.into()));
        actions.push(Action::Release(button.into()));
    }
    actions
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

fn drag(request: &DragRequest) -> Vec<Action> {
    let button = button(request.button);
    let mut path = drag_path(request).into_iter();
    let mut actions = Vec::new();
    if let Some(start) = path.next() {
        actions.extend([Action::Move(start), Action::Press(button.into())]);
    }
    for point in path {
        actions.extend([Action::PauseMs(DRAG_PAUSE_MS), Action::Move(point)]);
    }
    actions.extend([Action::PauseMs(DRAG_PAUSE_MS), Action::Release(button.into())]);
    actions
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

fn scroll(request: &ScrollRequest) -> Result<Vec<Action>, ApiError> {
    let clicks = request.clicks.or(request.amount).unwrap_or(3);
    if !(0..=100).contains(&clicks) {
        return Err(ApiError::field("clicks", "not between 0 and 100"));
    }
    let (dx, dy) = match request.direction {
        ScrollDirection::Up => (0, -clicks),
        ScrollDirection::Down => (0, clicks),
        ScrollDirection::Left => (-clicks, 0),
        ScrollDirection::Right => (clicks, 0),
    };
    let mut actions = move_to(request.x, request.y)?;
    actions.push(Action::Scroll(Scroll { dx, dy }));
    Ok(actions)
}

fn typed(request: TypeRequest) -> Result<Action, ApiError> {
    if request.text.len() > LONGEST_TEXT {
        let message = format!("longer than {LONGEST_TEXT} bytes; type it in parts");
        return Err(ApiError::field("text", message));
    }
    match request.delay.unwrap_or(0) {
        0 => Ok(Action::TypeText(request.text)),
        delay_ms if delay_ms > 1000 => Err(ApiError::field("delay", "longer than 1000 ms")),
        delay_ms => Ok(Action::TypeSlowly(TypeSlowly { text: request.text, delay_ms })),
    }
}

fn chord(field: &str, key: &str) -> Result<KeyChord, ApiError> {
    Ok(KeyChord { keysyms: keysyms::chord(field, key)? })
}

/// Keys that are pressed together.
fn hotkey(request: &HotkeyRequest) -> Result<KeyChord, ApiError> {
    let mut keysyms = Vec::with_capacity(request.keys.len());
    for key in &request.keys {
        keysyms.extend(keysyms::chord("keys", key)?);
    }
    if keysyms.is_empty() {
        let message = "empty: name the keys that are pressed together, such as [\"ctrl\", \"c\"]";
        return Err(ApiError::field("keys", message));
    }
    Ok(KeyChord { keysyms })
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

fn watch(
    until: ScreenEvent,
    quiet_ms: u32,
    timeout_ms: Option<u32>,
    region: Option<ScreenRegion>,
) -> Result<WatchScreenRequest, ApiError> {
    let timeout_ms = timeout_ms.unwrap_or(SCREEN_TIMEOUT_MS);
    for (field, ms) in [("quiet_ms", quiet_ms), ("timeout_ms", timeout_ms)] {
        if Duration::from_millis(ms.into()) > LONGEST_WAIT {
            return Err(ApiError::field(field, "longer than 60000 ms; wait several times"));
        }
    }
    let region = region.map(|ScreenRegion { x, y, width, height }| Region { x, y, width, height });
    Ok(WatchScreenRequest { until: until.into(), quiet_ms, timeout_ms, region })
}

/// The picture after the actions.
#[derive(Debug)]
struct After {
    settle: Option<WatchScreenRequest>,
    region: Option<ScreenRegion>,
    query: PictureQuery,
}

fn picture_after(asked: ActionsScreenshot) -> Result<After, ApiError> {
    let quiet_ms = asked.quiet_ms.unwrap_or(QUIET_MS);
    let settle = watch(ScreenEvent::Settled, quiet_ms, asked.timeout_ms, asked.region)?;
    let query = PictureQuery {
        format: Some(asked.format),
        quality: asked.quality,
        scale: asked.scale,
        cursor: Some(asked.cursor),
    };
    super::picture::check(&query)?;
    Ok(After { settle: (quiet_ms > 0).then_some(settle), region: asked.region, query })
}

#[cfg(test)]
mod tests {
    use roost_api::PointRequest;

    use super::*;

    fn path(from: (i32, i32), to: (i32, i32)) -> Vec<(i32, i32)> {
        let request =
            DragRequest { from_x: from.0, from_y: from.1, to_x: to.0, to_y: to.1, button: MouseButton::Left };
        drag_path(&request).into_iter().map(|point| (point.x, point.y)).collect()
    }

    #[test]
    fn a_drag_goes_in_steps_from_the_first_point_to_the_last() {
        assert_eq!(path((0, 0), (8, 4)), [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]);
        assert_eq!(path((5, 5), (5, 5)), [(5, 5); 5]);
        let long = path((10, 700), (1200, 20));
        assert_eq!((long[0], long[long.len() - 1], long.len()), ((10, 700), (1200, 20), 65));
        let whole = path((i32::MIN, i32::MAX), (i32::MAX, i32::MIN));
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
        watch(ScreenEvent::Changed, 0, Some(60_000), None).unwrap();
        watch(ScreenEvent::Changed, 0, Some(60_001), None).unwrap_err();
    }

    #[test]
    fn an_error_names_the_action_it_is_in() {
        let good = || DesktopAction::Move(PointRequest { x: 1, y: 2 });
        let bad = DesktopAction::Wait(WaitRequest { seconds: Some(61.0), ms: None });
        let error = steps(vec![good(), bad]).unwrap_err();
        assert!(error.fields.contains_key("actions[1].seconds"), "{error:?}");
        assert!(error.message.starts_with("actions[1].seconds: "), "{}", error.message);
        steps(Vec::new()).unwrap_err();
        steps((0..=MOST_ACTIONS).map(|_| good()).collect()).unwrap_err();
        assert_eq!(steps((0..MOST_ACTIONS).map(|_| good()).collect()).unwrap().len(), MOST_ACTIONS);
    }

    #[test]
    fn a_picture_is_taken_when_the_screen_has_settled() {
        let after = picture_after(ActionsScreenshot::default()).unwrap();
        let settle = after.settle.unwrap();
        assert_eq!((settle.quiet_ms, settle.timeout_ms), (QUIET_MS, SCREEN_TIMEOUT_MS));
        let at_once = ActionsScreenshot { quiet_ms: Some(0), ..ActionsScreenshot::default() };
        assert!(picture_after(at_once).unwrap().settle.is_none());
        picture_after(ActionsScreenshot { quality: Some(80), ..ActionsScreenshot::default() }).unwrap_err();
    }
}

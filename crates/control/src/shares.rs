//! Shares: links that open a computer's desktop for people without an account, until they expire or are revoked.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use roost_api::{
    ApiError, ComputerId, CreateShare, CreatedShare, ErrorCode, Share, ShareId, ShareKind, ShareRole,
    SharedDesktop, Timestamp,
};
use roost_store::{ComputerRecord, ShareRecord};

use crate::connection::{DEFAULT_MODE, DEFAULT_TTL};
use crate::keys::hash;
use crate::status::status;
use crate::token::StreamRights;
use crate::{Control, Failure};

const LONGEST_HOURS: i64 = 8760;
const LONGEST_EMAIL: usize = 254;
const MICROSECONDS: i64 = 1_000_000;

impl Control {
    pub async fn share(
        &self,
        record: &ComputerRecord,
        request: CreateShare,
    ) -> Result<CreatedShare, Failure> {
        let email = request.email.as_deref().map(str::trim).filter(|email| !email.is_empty());
        match (request.kind, email) {
            (ShareKind::User, None) => return Err(ApiError::field("email", "required of kind user").into()),
            (_, Some(email)) if !is_address(email) => {
                return Err(ApiError::field("email", "not an address of the form name@example.org").into());
            }
            (ShareKind::User | ShareKind::Link, _) => {}
        }
        let now = Timestamp::now();
        let expires_at = match request.expires_in_hours {
            None => None,
            Some(hours) if (1..=LONGEST_HOURS).contains(&hours) => {
                Timestamp::from_micros(now.as_micros() + hours * 3600 * MICROSECONDS)
            }
            Some(hours) => {
                let problem = format!("must be 1 to {LONGEST_HOURS}, not {hours}");
                return Err(ApiError::field("expires_in_hours", problem).into());
            }
        };
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
        let token = format!("rsh_{}", URL_SAFE_NO_PAD.encode(bytes));
        let share = ShareRecord {
            id: ShareId::new(),
            computer_id: record.id,
            kind: request.kind,
            role: request.role,
            email: email.map(str::to_owned),
            expires_at,
            created_at: now,
        };
        if !self.inner.store.insert_share(&share, &hash(&token)).await? {
            return Err(Failure::computer_not_found());
        }
        let origin = &self.inner.config.urls.origin;
        Ok(CreatedShare { data: view(&share), share_url: format!("{origin}/shared/{token}") })
    }

    /// The shares that hold, newest first.
    pub async fn shares(&self, record: &ComputerRecord) -> Result<Vec<Share>, Failure> {
        let now = Timestamp::now();
        let shares = self.inner.store.shares(record.id).await?;
        Ok(shares.iter().filter(|share| holds(share, now)).map(view).collect())
    }

    /// Its link opens nothing any more. A desktop that it has opened stays open until its token expires.
    pub async fn revoke_share(&self, computer: ComputerId, share: ShareId) -> Result<(), Failure> {
        if self.inner.store.remove_share(computer, share).await? { Ok(()) } else { Err(not_found()) }
    }

    /// What a share opens, whatever the status of its computer: the desktop page knows what to say.
    pub async fn shared(&self, token: &str) -> Result<SharedDesktop, Failure> {
        let now = Timestamp::now();
        let share = self.inner.store.share_by_token_hash(&hash(token)).await?;
        let share = share.filter(|share| holds(share, now)).ok_or_else(not_found)?;
        let record = self.record(share.computer_id).await.map_err(|_| not_found())?;
        let left = share.expires_at.map_or(DEFAULT_TTL, |end| end.as_seconds() - now.as_seconds());
        let rights = match share.role {
            ShareRole::Viewer => StreamRights::View,
            ShareRole::Editor => StreamRights::Control,
        };
        Ok(SharedDesktop {
            name: record.name.clone(),
            status: status(&record),
            kind: share.kind,
            role: share.role,
            desktop: self.embed(&record, rights, left.clamp(1, DEFAULT_TTL), DEFAULT_MODE)?,
        })
    }
}

fn holds(share: &ShareRecord, now: Timestamp) -> bool {
    share.expires_at.is_none_or(|end| now < end)
}

fn not_found() -> Failure {
    Failure::new(ErrorCode::NotFound, "this share does not exist, has expired or was revoked")
}

fn view(share: &ShareRecord) -> Share {
    Share {
        id: share.id,
        kind: share.kind,
        role: share.role,
        email: share.email.clone(),
        expires_at: share.expires_at,
    }
}

fn is_address(text: &str) -> bool {
    let is_plain = text.len() <= LONGEST_EMAIL && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    is_plain && text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty())
}

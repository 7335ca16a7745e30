//! Seals everything with the newest key, so that the earlier ones can go.
//!
//! It is done while no server runs, and may be interrupted anywhere: whatever is not sealed again yet opens with its old
//! key, which goes only when nothing is left that it opens.

use roost_store::{SealedPlace, Store};

use crate::{Failure, SealKey, env, idempotency, setup, webhooks};

/// What became of the values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resealed {
    pub sealed_again: usize,
    /// They had the newest key already.
    pub current: usize,
    /// Where values are that no key opens. They are as they were.
    pub unreadable: Vec<String>,
}

/// Seals everything in the database with the newest key of the ring.
pub async fn reseal(store: &Store, keys: &SealKey) -> Result<Resealed, Failure> {
    let mut resealed = Resealed::default();
    for place in store.sealed_places().await? {
        // What is gone since was removed, and what is another value by now is looked at again.
        while let Some(sealed) = store.sealed_value(&place).await? {
            if keys.is_current(&sealed) {
                resealed.current += 1;
                break;
            }
            let context = context(&place);
            let Some(secret) = keys.open(&context, &sealed) else {
                resealed.unreadable.push(context);
                break;
            };
            if store.replace_sealed(&place, &sealed, &keys.seal(&context, &secret)?).await? {
                resealed.sealed_again += 1;
                break;
            }
        }
    }
    Ok(resealed)
}

fn context(place: &SealedPlace) -> String {
    match place {
        SealedPlace::Variable { tenant, computer, name } => env::context(*tenant, *computer, name),
        SealedPlace::StartVariable { tenant, computer, name } => env::start_context(*tenant, *computer, name),
        SealedPlace::SetupScript { tenant, computer } => setup::context("script", *tenant, *computer),
        SealedPlace::SetupOutput { tenant, computer } => setup::context("output", *tenant, *computer),
        SealedPlace::WebhookSecret(id) => webhooks::context("secret", *id),
        SealedPlace::WebhookHeaders(id) => webhooks::context("headers", *id),
        SealedPlace::Answer(id) => idempotency::context(id),
    }
}

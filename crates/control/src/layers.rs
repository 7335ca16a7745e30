//! What is kept beside the machines: layers of disks, memory of snapshots. Frees what nobody needs, ends what
//! has expired, and keeps chains of layers short.
//!
//! References are derived from rows, never counted, so [`Control::collect`] may be run at any time and as often
//! as anybody likes: files go first, then their rows. A task runs it after every change that may have freed
//! something, and when the next snapshot expires.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use roost_api::{LayerId, RegionName, Timestamp};
use roost_store::{Deletion, Exclusive, Held, LayerRecord, WorkflowPayload, WorkflowRecord};
use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::{Control, Failure};

/// Chains that are longer are shortened, where a layer serves nobody but the one on it.
const LONGEST_CHAIN: usize = 8;
/// How long the task sleeps at most: the clock may be set meanwhile, and what failed is tried again.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Storage {
    /// Held while files are removed or merged.
    files: Mutex<()>,
    /// Held for the whole of a merge.
    merging: Mutex<()>,
    changed: Arc<Notify>,
}

impl Storage {
    /// Something may be needed no longer, or expire sooner.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }
}

impl Control {
    /// Removes every snapshot that is deleted, every hidden one whose clone has started, and every layer that
    /// nothing lies on.
    pub async fn collect(&self) -> Result<(), Failure> {
        let _alone = self.alone_with_files().await?;
        self.collect_alone().await
    }

    /// Nobody else removes or merges files, here or at another server.
    async fn alone_with_files(&self) -> Result<(MutexGuard<'_, ()>, Held), Failure> {
        let here = self.inner.storage.files.lock().await;
        Ok((here, self.inner.store.exclusive(Exclusive::Storage).await?))
    }

    /// With `files` held.
    async fn collect_alone(&self) -> Result<(), Failure> {
        // Files go wherever they are: whoever has none has nothing to do.
        let (store, regions) = (&self.inner.store, &self.inner.regions);
        store.delete_needless_clones().await?;
        for snapshot in store.deleted_snapshots().await? {
            for launcher in regions.all() {
                launcher.remove_snapshot(snapshot).await?;
            }
            store.remove_snapshot(snapshot).await?;
            self.inner.snapshot_hub.notify(snapshot);
        }
        // What a layer lay on may be needless once it is gone.
        loop {
            let needless = store.needless_layers().await?;
            if needless.is_empty() {
                return Ok(());
            }
            for layer in needless {
                for launcher in regions.all() {
                    launcher.remove_layer(layer).await?;
                }
                store.remove_layer(layer).await?;
            }
        }
    }

    /// Deletes the snapshots whose time is over. One that somebody comes to need meanwhile stays.
    pub async fn expire(&self) -> Result<(), Failure> {
        for snapshot in self.inner.store.expired_snapshots(Timestamp::now()).await? {
            if let Deletion::Deleted(_) = self.inner.store.delete_snapshot(snapshot).await? {
                tracing::info!(%snapshot, "a snapshot has expired");
            }
        }
        Ok(())
    }

    /// Merges one layer of a chain that is too long into the one on it; whether there was one.
    ///
    /// A start that was begun before the merge may have opened the upper layer as it was, and look for the
    /// lower one next: the lower one goes when every such start has ended.
    pub async fn merge_one(&self) -> Result<bool, Failure> {
        let _one = self.inner.storage.merging.lock().await;
        let store = &self.inner.store;
        let (lower, upper, disk_bytes) = {
            let _alone = self.alone_with_files().await?;
            let Some((lower, upper, region)) = mergeable(&store.layers().await?) else { return Ok(false) };
            (lower, upper, self.inner.regions.of(&region)?.merge(lower, upper).await?)
        };
        for handle in self.launching().await? {
            // How it ended is not our matter.
            drop(handle.ended().await);
        }
        let _alone = self.alone_with_files().await?;
        if store.merge_layers(lower, upper, disk_bytes).await? {
            tracing::info!(%lower, %upper, disk_bytes, "merged two layers");
        }
        self.collect_alone().await?;
        Ok(true)
    }

    /// Files of layers and snapshots that no row knows: what a crash left before a row was written, or after
    /// it was removed.
    pub(crate) async fn remove_unknown_storage(&self, workflows: &[WorkflowRecord]) -> Result<(), Failure> {
        let store = &self.inner.store;
        let mut layers: HashSet<LayerId> = store.layers().await?.iter().map(|layer| layer.id).collect();
        for workflow in workflows {
            if let Some(WorkflowPayload::Capture { layer, .. }) = workflow.payload {
                layers.insert(layer);
            }
        }
        for launcher in self.inner.regions.all() {
            let stored = launcher.stored().await?;
            for snapshot in stored.snapshots {
                if store.snapshot(snapshot).await?.is_none() {
                    tracing::warn!(%snapshot, "removing the files of a snapshot that does not exist");
                    launcher.remove_snapshot(snapshot).await?;
                }
            }
            for layer in stored.layers {
                if !layers.contains(&layer) {
                    tracing::warn!(%layer, "removing the file of a layer that does not exist");
                    launcher.remove_layer(layer).await?;
                }
            }
        }
        Ok(())
    }

    /// Does all of this from now on, whenever there is something to do.
    pub(crate) fn keep_storage(&self) {
        let weak = Arc::downgrade(&self.inner);
        let changed = self.inner.storage.changed.clone();
        changed.notify_one();
        tokio::spawn(async move {
            let mut sleep = LONGEST_SLEEP;
            loop {
                tokio::select! {
                    () = changed.notified() => {}
                    () = tokio::time::sleep(sleep) => {}
                }
                let Some(inner) = weak.upgrade() else { return };
                sleep = (Control { inner }).keep().await;
            }
        });
    }

    /// One round; how long to sleep after it.
    async fn keep(&self) -> Duration {
        let round = async {
            self.expire().await?;
            self.collect().await?;
            Ok::<_, Failure>(self.inner.store.next_expiry().await?)
        };
        let next = match round.await {
            Ok(next) => next,
            Err(failure) => {
                tracing::error!(
                    failure = &failure as &dyn std::error::Error,
                    "failed to free storage; trying again later"
                );
                None
            }
        };
        if self.inner.storage.merging.try_lock().is_ok() {
            let control = self.clone();
            tokio::spawn(async move { control.merge_all().await });
        }
        next.map_or(LONGEST_SLEEP, |next| {
            let micros = next.as_micros().saturating_sub(Timestamp::now().as_micros());
            Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(LONGEST_SLEEP)
        })
    }

    async fn merge_all(&self) {
        loop {
            match self.merge_one().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(failure) => {
                    let failure = &failure as &dyn std::error::Error;
                    tracing::error!(failure, "failed to merge layers; trying again later");
                    return;
                }
            }
        }
    }
}

/// A layer below a chain that is too long which serves nobody but one other, that other, and where both are.
fn mergeable(layers: &[LayerRecord]) -> Option<(LayerId, LayerId, RegionName)> {
    let by_id: HashMap<LayerId, &LayerRecord> = layers.iter().map(|layer| (layer.id, layer)).collect();
    let mut children: HashMap<LayerId, usize> = HashMap::new();
    for parent in layers.iter().filter_map(|layer| layer.parent) {
        *children.entry(parent).or_default() += 1;
    }
    let below = |layer: &LayerRecord| layer.parent.and_then(|parent| by_id.get(&parent).copied());
    let tops = layers.iter().filter(|layer| !children.contains_key(&layer.id));
    for top in tops {
        let chain: Vec<&LayerRecord> = std::iter::successors(Some(top), |layer| below(layer)).collect();
        if chain.len() <= LONGEST_CHAIN {
            continue;
        }
        let pair = chain.windows(2).find_map(|pair| match pair {
            [upper, lower] if lower.users == 0 && children.get(&lower.id) == Some(&1) => {
                Some((lower.id, upper.id, upper.region.clone()))
            }
            _ => None,
        });
        if pair.is_some() {
            return pair;
        }
    }
    None
}

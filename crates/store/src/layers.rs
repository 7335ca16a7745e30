//! Layers: what is needed, what is not, and the removal of rows whose files are gone.

use roost_api::{ComputerId, LayerId, RegionName, SnapshotId, Timestamp};
use sqlx::Transaction;

use crate::computers::signed;
use crate::record::{number, optional, parsed};
use crate::{Db, Store, StoreError};

/// A layer and who needs it, beside the layers that name it as their parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    pub id: LayerId,
    pub parent: Option<LayerId>,
    pub disk_bytes: u64,
    /// How many computers and snapshots lie on it.
    pub users: u64,
    /// Where its file is.
    pub region: RegionName,
}

impl Store {
    /// Every layer.
    pub async fn layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.id, l.parent_id, l.disk_bytes, l.region,
                 (SELECT COUNT(*) FROM computers c WHERE c.layer_id = l.id)
                 + (SELECT COUNT(*) FROM snapshots s WHERE s.layer_id = l.id) AS users
             FROM layers l ORDER BY l.created_at, l.id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(LayerRecord {
                    id: parsed(row, "id")?,
                    parent: optional(row, "parent_id")?,
                    disk_bytes: number(row, "disk_bytes")?,
                    users: number(row, "users")?,
                    region: parsed(row, "region")?,
                })
            })
            .collect()
    }

    /// Layers that nothing lies on. Nothing ever will: whoever comes to need a layer gets it from a computer, a
    /// snapshot or a layer that needs it already.
    pub async fn needless_layers(&self) -> Result<Vec<LayerId>, StoreError> {
        let rows = sqlx::query(
            "SELECT l.id FROM layers l
             WHERE NOT EXISTS (SELECT 1 FROM computers c WHERE c.layer_id = l.id)
                 AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer_id = l.id)
                 AND NOT EXISTS (SELECT 1 FROM layers k WHERE k.parent_id = l.id)",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Removes the row of a layer whose file is gone.
    pub async fn remove_layer(&self, id: LayerId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM layers WHERE id = $1").bind(id.to_string()).execute(&self.pool).await?;
        Ok(())
    }

    /// Marks the hidden snapshots that no computer needs any more as deleted.
    pub async fn delete_needless_clones(&self) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE snapshots SET status = 'deleted', updated_at = $1
             WHERE purpose = 'clone' AND status IN ('ready', 'failed')
                 AND NOT EXISTS (SELECT 1 FROM computers c WHERE c.snapshot_id = snapshots.id)",
        )
        .bind(Timestamp::now().as_micros())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Snapshots whose files are to be removed.
    pub async fn deleted_snapshots(&self) -> Result<Vec<SnapshotId>, StoreError> {
        let rows =
            sqlx::query("SELECT id FROM snapshots WHERE status = 'deleted'").fetch_all(&self.pool).await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Removes the row of a deleted snapshot whose files are gone.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM snapshots WHERE id = $1 AND status = 'deleted'")
            .bind(id.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Records that `upper` holds what `lower` held, which nobody but `upper` needed: false where that is no
    /// longer so.
    pub async fn merge_layers(
        &self,
        lower: LayerId,
        upper: LayerId,
        disk_bytes: u64,
    ) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "UPDATE layers SET parent_id = (SELECT parent_id FROM layers WHERE id = $1), disk_bytes = $3
             WHERE id = $2 AND parent_id = $1",
        )
        .bind(lower.to_string())
        .bind(upper.to_string())
        .bind(signed(disk_bytes)?)
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() > 0)
    }
}

/// The computer's disk lies on `layer` now, and that on what the disk lay on before. Done already: nothing.
pub(crate) async fn put_under(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    layer: LayerId,
    disk_bytes: u64,
) -> Result<(), StoreError> {
    let now = Timestamp::now().as_micros();
    sqlx::query(
        "INSERT INTO layers (id, parent_id, disk_bytes, created_at, region)
         SELECT $1, layer_id, $2, $3, region FROM computers WHERE id = $4
             AND NOT EXISTS (SELECT 1 FROM layers WHERE id = $1)",
    )
    .bind(layer.to_string())
    .bind(signed(disk_bytes)?)
    .bind(now)
    .bind(computer.to_string())
    .execute(&mut **tx)
    .await?;
    sqlx::query("UPDATE computers SET layer_id = $1, updated_at = $2 WHERE id = $3")
        .bind(layer.to_string())
        .bind(now)
        .bind(computer.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

//! Exposed ports: which there are, who may use them, and their addresses.

use roost_api::{
    ApiError, ChangePort, ComputerId, ErrorCode, ExposePort, Port, PortList, PortNumber, PortUrl,
};
use roost_store::{ComputerRecord, Exposed, PortRecord};

use crate::{Control, Failure};

/// How exposing a port went.
#[derive(Debug, Clone)]
pub enum ExposedPort {
    New(Port),
    /// It was exposed already, and is now as asked.
    Changed(Port),
}

impl Control {
    pub async fn ports(&self, record: &ComputerRecord) -> Result<PortList, Failure> {
        let ports = self.inner.store.ports(record.id).await?;
        let rows: Vec<Port> = ports.iter().map(|port| self.port_view(record, port)).collect();
        Ok(PortList { data: rows.clone(), ports: rows })
    }

    pub async fn expose_port(
        &self,
        record: &ComputerRecord,
        request: ExposePort,
    ) -> Result<ExposedPort, Failure> {
        match self.inner.store.expose_port(record.id, request.port, request.visibility).await? {
            Exposed::New(port) => Ok(ExposedPort::New(self.port_view(record, &port))),
            Exposed::Changed(port) => Ok(ExposedPort::Changed(self.port_view(record, &port))),
            Exposed::Missing => Err(Failure::computer_not_found()),
        }
    }

    pub async fn change_port(
        &self,
        record: &ComputerRecord,
        port: PortNumber,
        request: ChangePort,
    ) -> Result<Port, Failure> {
        let store = &self.inner.store;
        let changed = match request.visibility {
            Some(visibility) => store.change_port(record.id, port, visibility).await?,
            None => store.port(record.id, port).await?,
        };
        changed.map(|changed| self.port_view(record, &changed)).ok_or_else(|| not_exposed(port))
    }

    pub async fn remove_port(&self, computer: ComputerId, port: PortNumber) -> Result<(), Failure> {
        if self.inner.store.remove_port(computer, port).await? { Ok(()) } else { Err(not_exposed(port)) }
    }

    /// Where a port is, exposed or not: members of the tenant reach every port.
    pub fn port_url(&self, record: &ComputerRecord, port: PortNumber) -> PortUrl {
        let origin = &self.inner.config.urls.origin;
        PortUrl {
            port,
            url: self.preview_url(record, port),
            path_url: format!("{origin}/computers/{}/ports/{port}/proxy/", record.id),
            slug: record.slug.clone(),
        }
    }

    pub(crate) fn preview_url(&self, record: &ComputerRecord, port: PortNumber) -> String {
        let (scheme, domain) = (&self.inner.config.urls.scheme, self.preview_domain_of(record));
        format!("{scheme}://{port}-{}.sandbox.{domain}", record.slug)
    }

    fn port_view(&self, record: &ComputerRecord, port: &PortRecord) -> Port {
        let url = self.preview_url(record, port.port);
        Port {
            port: port.port,
            visibility: port.visibility,
            protocol: "http".to_owned(),
            public_url: url.clone(),
            url,
            created_at: port.created_at,
            updated_at: port.updated_at,
        }
    }
}

fn not_exposed(port: PortNumber) -> Failure {
    let message = format!("port {port} is not exposed; expose it with POST /api/v1/computers/{{id}}/ports");
    ApiError::new(ErrorCode::NotFound, message).into()
}

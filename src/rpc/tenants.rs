//! `TenantService`.

use tonic::Request;

use super::{Answer, Context, caller, check::Faults, convert::timestamp, page};
use crate::{
    domain::{
        id::{TenantId, wall_clock},
        tenant::{self, Tenant},
    },
    error::{Error, Reason},
    pipeline::publish::unavailable,
    proto::v1::{
        CreateTenantRequest, CreateTenantResponse, GetTenantRequest, GetTenantResponse,
        ListTenantsRequest, ListTenantsResponse, Tenant as TenantView,
        tenant_service_server::TenantService,
    },
    store::StoreError,
};

/// Makes and lists tenants.
pub struct Tenants(pub Context);

fn view(t: &Tenant) -> TenantView {
    TenantView {
        tenant_id: t.id.to_string(),
        name: t.name.clone(),
        display_name: t.display_name.clone(),
        create_time: Some(timestamp(t.created_at)),
    }
}

#[tonic::async_trait]
impl TenantService for Tenants {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Answer<CreateTenantResponse> {
        if caller(&request)?.key().tenant.is_some() {
            return Err(Error::new(
                Reason::TenantMismatch,
                "a key that is bound to a tenant can't make another one",
            )
            .into());
        }
        let given = request.into_inner();
        let mut faults = Faults::default();
        if !tenant::is_name(&given.name) {
            faults.add(
                "name",
                "takes 1 to 63 of a-z, 0-9 and -, beginning with a letter",
            );
        }
        let display_name = faults.text("display_name", &given.display_name, 200, false);
        faults.done()?;
        let now = wall_clock();
        let new = Tenant {
            id: tenant::new_id(now),
            name: given.name,
            display_name,
            created_at: now,
        };
        self.0
            .store
            .create_tenant(&new)
            .await
            .map_err(|e| match e {
                StoreError::Exists(_) => Error::new(
                    Reason::AlreadyExists,
                    format!("there is a tenant {} already", new.name),
                ),
                e => unavailable(e),
            })?;
        self.0.catch_up().await;
        Ok(tonic::Response::new(CreateTenantResponse {
            tenant: Some(view(&new)),
        }))
    }

    async fn get_tenant(&self, request: Request<GetTenantRequest>) -> Answer<GetTenantResponse> {
        let caller = caller(&request)?;
        let named = request.into_inner().tenant;
        if named.is_empty() {
            return Err(Error::field("tenant", "is required").into());
        }
        let mut found = self.0.directory.tenant(&named);
        if found.is_none() {
            self.0.catch_up().await;
            found = self.0.directory.tenant(&named);
        }
        let found = found
            .filter(|t| caller.sees(t.id))
            .ok_or_else(|| Error::not_found("such tenant"))?;
        Ok(tonic::Response::new(GetTenantResponse {
            tenant: Some(view(&found)),
        }))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Answer<ListTenantsResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<TenantId>(given.page_size, &given.page_token)?;
        let mut rows = match caller.key().tenant {
            Some(own) => {
                let own = self.0.directory.tenant_by_id(own);
                let rest = own.filter(|t| page.before.is_none_or(|before| t.id < before));
                rest.map(|t| vec![(*t).clone()]).unwrap_or_default()
            }
            None => self.0.store.list_tenants(page).await.map_err(unavailable)?,
        };
        let next_page_token = page::cut(&page, &mut rows, |t| t.id);
        Ok(tonic::Response::new(ListTenantsResponse {
            tenants: rows.iter().map(view).collect(),
            next_page_token,
        }))
    }
}

//! A cluster of three RabbitMQ brokers.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use futures::future::join_all;

use super::Broker;
use super::site::Site;

/// Three nodes of one cluster, for replicated queues.
///
/// `cluster[0]` is the first node. Each node can be stopped, killed and started again separately.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts the cluster, and waits until each node sees the others.
    pub async fn of_three() -> Self {
        let site = Arc::new(Site::new(&[]).await);
        let names = ["n1", "n2", "n3"];
        let mut nodes: Vec<Broker> =
            names.iter().map(|name| Broker::new(site.clone(), name, &names)).collect();
        join_all(nodes.iter_mut().map(Broker::start_again)).await;
        let cluster = Self { nodes };
        for node in 0..names.len() {
            cluster.sees(node, names.len()).await;
        }
        cluster
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Broker> {
        self.nodes.iter()
    }

    /// Waits until this node sees `count` running nodes, including itself.
    pub async fn sees(&self, node: usize, count: usize) {
        self[node].becomes("length(rabbit_nodes:all_running())", &count.to_string()).await;
    }
}

impl Index<usize> for Cluster {
    type Output = Broker;

    fn index(&self, node: usize) -> &Broker {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut Broker {
        &mut self.nodes[node]
    }
}

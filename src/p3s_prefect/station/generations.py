"""The experiment as it is now, and as it was for what is still open: a reload changes the first, never the second."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import execution, reconfigured
from p3s_prefect.core.experiment import Experiment, Stage
from p3s_prefect.core.records import StageOrder
from p3s_prefect.station.catalogue import Catalogue


class Generations:
    """Catalogues by the configurations that they stand for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.now = catalogue
        """The one for what comes."""
        self._former: dict[str, Catalogue] = {}

    @property
    def experiment(self) -> Experiment:
        """The experiment as it is now."""
        return self.now.experiment

    def adopt(self, newer: Catalogue, still_open: Collection[str]) -> None:
        """From now on, `newer` decides about what comes; former ones stay for the configurations that are open."""
        own = dict.fromkeys((found.configuration_id for found in self.now.collections.values()), self.now)
        former = self._former | own
        self._former = {name: catalogue for name, catalogue in former.items() if name in still_open}
        self.now = newer

    def open_attempt(self, connection: Connection, stage_run_id: int, now: float) -> StageOrder:
        """As `Catalogue.open_attempt`, with the definition under which the unit came."""
        opened = execution.start(connection, stage_run_id, now)
        return self._of(connection, opened.collection).order(connection, opened)

    def stage(self, connection: Connection, stage_run_id: int) -> Stage:
        """The definition of the stage that a stage run is of."""
        collection, pipeline, stage = execution.definition_of(connection, stage_run_id)
        return self._of(connection, collection).stage(pipeline, stage)

    def _of(self, connection: Connection, collection: str) -> Catalogue:
        if not self._former:
            return self.now
        return self._former.get(reconfigured.configuration_of(connection, collection), self.now)

from ingest.store.layouts._slot_table import SlotTable

class OpenPacks(SlotTable):
    store_id: bytes

"""The only importer of kubernetes_asyncio."""

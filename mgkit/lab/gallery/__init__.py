"""The notebooks as a website: parameters set, then pages with their panels as they were."""

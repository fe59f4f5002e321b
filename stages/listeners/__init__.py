"""Listeners: what can be done with events while stages run. Pass one as `listen`."""

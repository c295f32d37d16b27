"""The services by which machines and operators look at a server: health, reflection, channelz."""

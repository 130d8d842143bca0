"""Our policies beside the field's methods of active feature acquisition, on the same capsules."""

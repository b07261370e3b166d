package headrace;

import java.util.LinkedHashMap;
import java.util.List;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.functions.UserDefinedFunction;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.types.Row;

/**
 * The records pass whose slice of `per_ms` lies behind every one before it. The records are on time for their slice, so behind one
 * that the watermark has passed every slice lies.
 */
public final class FirstOfSlices extends Passing {
    private static final int LATEST = 0;

    private final int time;
    private final long perMs;

    public FirstOfSlices() {
        time = 0;
        perMs = 0;
    }

    private FirstOfSlices(CallContext call) {
        super(call);
        time = column(call, TIME_MS);
        perMs = number(call, 1);
    }

    @Override
    public UserDefinedFunction specialize(SpecializedContext context) {
        return new FirstOfSlices(context.getCallContext());
    }

    @Override
    List<StaticArgument> arguments() {
        return List.of(constant("per_ms"));
    }

    /** latest: the start of the last slice. */
    @Override
    LinkedHashMap<String, StateTypeStrategy> state() {
        LinkedHashMap<String, StateTypeStrategy> state = new LinkedHashMap<>();
        state.put("last", kept(DataTypes.ROW(DataTypes.FIELD("latest", DataTypes.BIGINT()))));
        return state;
    }

    public void eval(Context context, Row last, Row record, Long per) {
        long timeMs = record.<Long>getFieldAs(time), sliceMs = timeMs - Math.floorMod(timeMs, perMs);
        Long latestMs = last.getFieldAs(LATEST);
        if (latestMs == null || sliceMs > latestMs) {
            if (latestMs == null) {
                context.timeContext(Long.class).registerOnTime(sliceMs + perMs);
            }
            last.setField(LATEST, sliceMs);
            pass(record);
        }
    }

    public void onTimer(OnTimerContext context, Row last) {
        long overMs = last.<Long>getFieldAs(LATEST) + perMs;
        if (overMs <= context.timeContext(Long.class).currentWatermark()) {
            context.clearAllState();
        } else {
            context.timeContext(Long.class).registerOnTime(overMs);
        }
    }
}
